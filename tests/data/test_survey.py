"""A survey says of a folder what a training would do with it, and raises nothing."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from difflora.data.folder import scan
from difflora.data.options import DataOptions
from difflora.data.survey import survey
from difflora.errors import DataError


def picture(folder: Path, name: str, size: tuple[int, int], caption: str | None = "a thing") -> None:
    Image.new("RGB", size, (size[0] % 256, 40, 90)).save(folder / f"{name}.png")
    if caption is not None:
        (folder / f"{name}.txt").write_text(caption)


def test_a_good_folder_is_what_a_scan_finds(tmp_path: Path) -> None:
    for name, size in (("a", (128, 128)), ("b", (192, 128)), ("c", (128, 128)), ("small", (64, 64))):
        picture(tmp_path, name, size)
    shutil.copy(tmp_path / "a.png", tmp_path / "twin.png")
    (tmp_path / "twin.txt").write_text("another caption")
    (tmp_path / "readme.md").write_text("no image")
    options = DataOptions(data=tmp_path, resolution=128)
    found = survey(options, resolution=512)
    assert found.items == scan(options).items and found.problems == () and found.refusal == ""
    assert ("a.png", "twin.png") in found.duplicates or ("a.png", "c.png", "twin.png") in found.duplicates
    assert sum(found.buckets.values()) == 5 and (128, 128) in found.buckets
    assert found.blown_up == {"small.png": pytest.approx(2.0)}
    assert found.ignored == ("readme.md",)


def test_every_problem_is_there_beside_what_can_be_used(tmp_path: Path) -> None:
    picture(tmp_path, "good", (128, 128))
    picture(tmp_path, "silent", (128, 128), caption=None)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    (tmp_path / "broken.txt").write_text("a thing")
    options = DataOptions(data=tmp_path)
    found = survey(options, resolution=128)
    assert [item.name for item in found.items] == ["good.png"]
    assert {problem.name for problem in found.problems} == {"silent.png", "broken.png"}
    with pytest.raises(DataError) as raised:
        scan(options)
    assert found.refusal == str(raised.value)


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_without_images_is_a_refusal(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "images"
    if make:
        folder.mkdir()
    found = survey(DataOptions(data=folder), resolution=128)
    assert found.items == () and str(folder) in found.refusal
