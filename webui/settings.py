"""Where the page begins, and where things lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """`base_model` and `data` are what the forms begin with; below `output` lies all that is made.

    `loras` are further folders with adapters, `checkpoints` folders with base models; both are only read.
    """

    base_model: str
    data: str
    output: Path
    loras: tuple[Path, ...] = ()
    checkpoints: tuple[Path, ...] = ()

    @property
    def adapters(self) -> Path:
        """The folder that adapters are written to."""
        return self.output / "adapters"

    @property
    def jobs(self) -> Path:
        """The queue, and a folder a job with its files."""
        return self.output / "jobs"

    @property
    def uploads(self) -> Path:
        """Folders of images that came through the page."""
        return self.output / "uploads"

    @property
    def trash(self) -> Path:
        """Where adapters go that are deleted in the page."""
        return self.output / "trash"

    @property
    def baked(self) -> Path:
        """Base models with a mix in them."""
        return self.output / "bases"

    @property
    def state(self) -> Path:
        """What the worker says of its device."""
        return self.output / "worker.json"

    @property
    def private(self) -> tuple[Path, ...]:
        """Every folder of which no file may be served from where it lies."""
        return (self.jobs, self.uploads, self.trash, self.baked, *self.checkpoints, *self.library)

    @property
    def library(self) -> tuple[Path, ...]:
        """Every folder with adapters."""
        return (self.adapters, *self.loras)

    def prepare(self) -> None:
        """Makes the folders."""
        for folder in (self.adapters, self.jobs, self.uploads, self.trash):
            folder.mkdir(parents=True, exist_ok=True)
