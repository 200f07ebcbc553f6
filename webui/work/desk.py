"""What a job has at hand while it runs: its folder, the base models, and the way to say how far it is."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from difflora import (
    DiffloraError,
    LatentColours,
    Library,
    Recipe,
    Request,
    Stack,
    Weight,
    load,
    resolve,
    save_png,
)
from difflora.errors import LibraryError
from webui.jobs import Job, Jobs
from webui.settings import Settings

if TYPE_CHECKING:
    from difflora import Model

PREVIEW = "preview.png"
PREVIEW_SECONDS = 0.5  # at least, between two previews: drawing must not wait for being looked at
FROZEN = ConfigDict(frozen=True, extra="forbid")


class Cancelled(Exception):
    """The job was asked to end. `note` says what was kept."""

    def __init__(self, note: str = "") -> None:
        super().__init__(note)
        self.note = note


class Ended(BaseException):
    """The worker was asked to end: the job waits again, for the next one."""


LIMIT = 2.0
"""How far the sliders of the page go, up and down; a script may go twice as far."""


class MixRow(BaseModel):
    """One adapter of a mix, by its name in the library. `text` is None where it is as strong as on the
    UNet."""

    model_config = FROZEN

    name: str
    unet: FiniteFloat = Field(default=1.0, ge=-2 * LIMIT, le=2 * LIMIT)
    text: FiniteFloat | None = Field(default=None, ge=-2 * LIMIT, le=2 * LIMIT)
    on: bool = True


class Mixed(BaseModel):
    """A request with a mix. `files` are the adapters' files as they were when it was made, by name: a job
    that waits does not go on with what has been put in their place.

    Everything in it has a hash: by that the page sees that what a tab hands to another is a new one.
    """

    model_config = FROZEN

    mix: tuple[MixRow, ...] = ()
    files: tuple[tuple[str, str], ...] = Field(
        default=(), description="Names, and the size and time of change of their files."
    )

    def pinned(self, library: Library) -> Self:
        """The request with `files`. Adapters that are not there are left for the job to tell."""
        files = []
        for name in sorted({row.name for row in self.mix if row.on}.intersection(library.names)):
            with suppress(DiffloraError, OSError):
                files.append((name, _stamp(library, name)))
        return self.model_copy(update={"files": tuple(files)})

    def require_unchanged(self, library: Library) -> None:
        """Raises LibraryError naming an adapter that is another one now, or gone, and AdapterFileError if its
        file cannot be read any more."""
        for name, stamp in self.files:
            try:
                now = _stamp(library, name)
            except (DiffloraError, OSError):  # by a list that may be older than the file
                library.refresh()
                now = _stamp(library, name)
            if now != stamp:
                raise LibraryError(f"the adapter {name} was changed after this was asked for. Ask again.")


def _stamp(library: Library, name: str) -> str:
    path = library.find(name).path
    states = [one.stat() for one in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return f"{sum(one.st_size for one in states)} {max(one.st_mtime_ns for one in states)}"


@dataclass(frozen=True, slots=True)
class Done:
    """What a job has made: names of files below its folder, and JSON for the page."""

    files: tuple[str, ...] = ()
    result: str = "{}"


class Bases:
    """What a worker keeps from one job to the next: the base model loaded last, so that memory holds one, the
    adapters drawn with last, and the list of all, for of thousands it takes a while to make."""

    def __init__(self) -> None:
        self.in_use = Stack()
        self._loaded: tuple[str, Model, LatentColours] | None = None
        self._library: Library | None = None

    def library(self, folders: Sequence[Path]) -> Library:
        """The adapters in these folders, which are the same for every job."""
        if self._library is None:
            self._library = Library(*folders)
        return self._library

    @property
    def name(self) -> str:
        """The short name of the base that is loaded, "" if none is."""
        loaded = self._loaded  # another thread than the job's may ask
        return "" if loaded is None else loaded[1].facts.name

    def get(self, name: str) -> Model:
        """The base of that name."""
        return self._get(name)[1]

    def colours(self, name: str) -> LatentColours:
        """How its latents look."""
        return self._get(name)[2]

    def forget(self) -> None:
        """Makes room: training loads its own base."""
        self._loaded, self.in_use = None, Stack()

    def _get(self, name: str) -> tuple[str, Model, LatentColours]:
        if self._loaded is None or self._loaded[0] != name:
            self.forget()
            model = load(name)
            self._loaded = (name, model, LatentColours.of(model))
        return self._loaded


@dataclass(slots=True)
class Desk:
    """The running job's. `is_wanted` tells whether the page that it is done for is still there."""

    job: Job
    jobs: Jobs
    settings: Settings
    bases: Bases
    note: str = ""
    files: tuple[str, ...] = ()
    is_wanted: Callable[[], bool] = lambda: True
    _shown: float = field(default=0.0)

    @property
    def folder(self) -> Path:
        """Where the job's files go."""
        folder = self.jobs.place(self.job)
        folder.mkdir(exist_ok=True)
        return folder

    def library(self) -> Library:
        """The adapters."""
        return self.bases.library(self.settings.library)

    def stack(self, mix: Sequence[MixRow]) -> Stack:
        """The adapters of a mix that are on. Raises LibraryError on one that is not there."""
        library = self.library()
        return Stack(
            [
                (library.get(row.name), Weight(row.unet, row.unet if row.text is None else row.text))
                for row in mix
                if row.on
            ]
        )

    def mixed(self, mix: Sequence[MixRow], request: Request) -> tuple[Stack, Request]:
        """The mix with the adapters that the prompt names in `<lora:name:weight>`, and the request without
        these tags. Another weight the next time reads no file again."""
        found = resolve(request.prompt, self.library())
        self.bases.in_use = Stack([*self.stack(mix), *found.stack])
        return self.bases.in_use, request.model_copy(update={"prompt": found.prompt})

    def progress(self, done: int, total: int) -> None:
        """Says how far the job is. Raises Cancelled if it was asked to end, Ended if nobody wants it any
        more."""
        if not self.is_wanted():
            raise Ended
        if self.jobs.report(self.job, done=done, total=total, note=self.note, files=self.files):
            raise Cancelled

    def say(self, note: str) -> None:
        """Says in words what the job is about to do."""
        self.note = note
        self.progress(0, 0)

    def watch(self, base: str) -> Any:
        """What shows latents of `base` as they become the job's pictures, now and then."""
        colours = self.bases.colours(base)

        def show(latents: Any) -> None:
            if time.monotonic() - self._shown >= PREVIEW_SECONDS:
                self._shown = time.monotonic()
                self._preview(_side_by_side(colours.pictures(latents)))

        return show

    def keep(self, image: Image.Image, name: str) -> str:
        """Writes a picture that carries its recipe; returns its name."""
        recipe = Recipe.from_json(image.info["difflora"])
        save_png(image, self.folder / name, recipe)
        return name

    def _preview(self, image: Image.Image) -> None:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        partial = self.folder / f".{PREVIEW}"
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, self.folder / PREVIEW)
        self.files = (PREVIEW,)


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """The pictures in rows of four at most, a pixel for each place of a latent: browsers enlarge them."""
    width, height = pictures[0].size
    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * width, rows * height))
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number % columns * width, number // columns * height))
    return whole
