"""What the tabs share: settings, and the one base model in memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from difflora import load

if TYPE_CHECKING:
    from difflora import Model

# Concurrency id of everything that computes: one at a time, whichever tab it comes from.
GPU = "gpu"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the forms begin, and where results go."""

    base_model: str
    data: str
    output: Path

    @property
    def adapters(self) -> Path:
        """The folder that trained adapters are written to, and that generation reads."""
        return self.output / "adapters"

    @property
    def images(self) -> Path:
        """The folder of generated images."""
        return self.output / "images"


class Shared:
    """Used by one job at a time (concurrency id GPU), except for `stop`, which any thread may set."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stop = threading.Event()
        """Asks the running training to save its state and end."""
        self._base: tuple[str, Model] | None = None
        for folder in (settings.adapters, settings.images):
            folder.mkdir(parents=True, exist_ok=True)

    def base(self, name: str) -> Model:
        """The base model of that name. The one loaded last is kept, so that memory holds one."""
        if self._base is None or self._base[0] != name:
            self.forget_base()
            self._base = (name, load(name))
        return self._base[1]

    def forget_base(self) -> None:
        """Makes room: training loads its own base."""
        self._base = None
