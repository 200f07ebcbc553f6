"""The base models that can be chosen without typing where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from webui.settings import Settings

Choice = tuple[str, str]
"""What is shown, and what is chosen: a folder, a file or a Hub id."""


def choices(settings: Settings) -> list[Choice]:
    """The base that the page begins with, those baked here, and those in the folders of the settings."""
    found = [settings.base_model]
    for folder in (settings.baked, *settings.checkpoints):
        if folder.is_dir():
            found += sorted(_below(folder))
    found = list(dict.fromkeys(found))
    names = [_name(one) for one in found]
    return [
        (name if names.count(name) == 1 else f"{name} ({one})", one)
        for name, one in zip(names, found, strict=True)
    ]


def _name(base: str) -> str:
    path = Path(base)
    return path.stem if path.suffix == ".safetensors" else path.name


def _below(folder: Path) -> Iterator[str]:
    """Checkpoints, and diffusers folders, in which no further base is looked for. Links to folders are not
    followed: they could lead in a circle."""
    if (folder / "model_index.json").is_file():
        yield str(folder)
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)
        elif path.suffix == ".safetensors" and path.is_file():
            yield str(path)
