"""What the tabs share: settings, the queue, the library, and what is known of bases without loading them."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
from pydantic import BaseModel

from difflora import Library, outline
from difflora.errors import ConfigError
from webui.jobs import Job, Jobs
from webui.settings import Settings
from webui.visitors import LOCAL, owner_of
from webui.work.desk import Mixed

if TYPE_CHECKING:
    from difflora import Model


class Shared:
    """Of one page. `is_shared`: whether others than the user of this computer reach it."""

    def __init__(self, settings: Settings, *, is_shared: bool = False) -> None:
        settings.prepare()
        self.settings, self.is_shared = settings, is_shared
        self.jobs = Jobs(settings.jobs)
        self._secret = secrets.token_bytes(16)
        self._outline = lru_cache(maxsize=4)(outline)

    @cached_property
    def library(self) -> Library:
        """The adapters, listed once; `library.refresh()` lists them anew."""
        return Library(*self.settings.library)

    def outline(self, base: str) -> Model:
        """The names and shapes of a base. Raises BaseModelError if it is none."""
        return self._outline(base)

    def owner(self, request: gr.Request) -> str:
        """Whose jobs a request may see."""
        return owner_of(request, is_shared=self.is_shared)

    def uploads(self, owner: str) -> Path:
        """The folder of what `owner` has brought through the page."""
        return self.settings.uploads / hashlib.sha256(owner.encode()).hexdigest()[:12]

    def require_readable(self, folder: str, owner: str) -> None:
        """Raises ConfigError if a folder of images holds, or lies in, what other users have made."""
        if owner == LOCAL:
            return
        place, own = Path(folder).expanduser().resolve(), self.uploads(owner).resolve()
        settings = self.settings
        for private in (settings.jobs, settings.uploads, settings.trash, settings.adapters, settings.baked):
            others = private.resolve()
            if (place.is_relative_to(others) and not place.is_relative_to(own)) or others.is_relative_to(
                place
            ):
                raise ConfigError(
                    f"{folder} holds what others have made in this page. Upload your images, or name another "
                    "folder."
                )

    def submit(self, request: gr.Request, kind: str, wanted: BaseModel) -> Job:
        """Puts a job into the queue, for whoever asks. Raises JobError if too many wait."""
        asked = wanted.pinned(self.library) if isinstance(wanted, Mixed) else wanted
        return self.jobs.submit(self.owner(request), kind, asked.model_dump_json())

    def stop(self, request: gr.Request, number: int | None) -> None:
        """Asks a job to end, where it is the visitor's own; None is no job."""
        if number is not None:
            self.jobs.cancel(number, self.owner(request))

    def served(self, job: Job, names: tuple[str, ...]) -> list[str]:
        """Files of a job, where the page may serve them from.

        Gradio serves what lies in its own temporary folder, to whoever knows the path: a copy is put there,
        in a folder whose name nobody can guess, and the folders of jobs themselves are not served.
        """
        folder, place = self.private(f"{job.owner} {job.number}"), self.jobs.place(job)
        there = [name for name in names if (place / name).exists()]  # not what was deleted by hand
        return [str(linked(place / name, folder / name)) for name in there]

    def private(self, what: str) -> Path:
        """A folder that the page may serve from, under a name that nobody can guess."""
        token = hashlib.sha256(self._secret + what.encode()).hexdigest()[:32]
        folder = Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio") / token
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def linked(source: Path, target: Path) -> Path:
    """`source` under another name, without a copy of its bytes where the disk allows."""
    if target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns:
        return target
    partial = target.with_name(f"{secrets.token_hex(8)}.partial")  # another event may do the same just now
    try:
        os.link(source, partial)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, partial)
    os.replace(partial, target)
    partial.unlink(missing_ok=True)  # two names of one file are not made one
    return target
