"""A folder of adapters with subfolders, two files of one stem, and a file that is none."""

from pathlib import Path

import pytest

from difflora.formats import write
from tests.library.scenes import adapter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "adapters"
    for number, name in enumerate(("halftone", "neon", "a/robot", "b/robot", "b/deep/mosaic v1.2")):
        path = root / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(adapter(number), path)
    (root / "notes.txt").write_text("not an adapter")
    return root
