"""Uploaded files: pixels and captions are kept, and nothing else."""

from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from webui import uploads
from webui.uploads import UploadError, taken, write_caption


def picture(folder: Path, name: str, size: tuple[int, int] = (40, 30)) -> str:
    text = PngImagePlugin.PngInfo()
    text.add_text("secret", "where I live")
    Image.new("RGB", size, (200, 30, 60)).save(folder / name, pnginfo=text if name.endswith("png") else None)
    return str(folder / name)


def caption(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_pictures_and_captions_are_written_anew(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    files = [picture(given, "a.png"), picture(given, "b.jpg"), caption(given, "a.txt", "a thing")]
    folder = taken(files, tmp_path / "kept")
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "a.txt", "b.png"]
    with Image.open(folder / "a.png") as image:
        assert image.size == (40, 30) and "secret" not in image.info
    assert taken(files, tmp_path / "kept") == folder, "the same files are the same folder"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.png", b"\x89PNG nothing", "no picture"),
        ("a.svg", b"<svg/>", "expected"),
        ("a.exe", b"MZ", "expected"),
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("orphan.txt", b"words", "no picture has this name"),
    ],
)
def test_one_bad_file_is_named_and_nothing_is_kept(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / name).write_bytes(content)
    with pytest.raises(UploadError, match=name) as caught:
        taken([picture(given, "good.png"), str(given / name)], tmp_path / "kept")
    assert words in str(caught.value) and not (tmp_path / "kept").exists()


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = picture(tmp_path, "a.png", (50, 50))
    monkeypatch.setattr(uploads, "MAX_PIXELS", 2000)
    with pytest.raises(UploadError, match="50×50 pixels"):
        taken([file], tmp_path / "kept")
    monkeypatch.setattr(uploads, "MAX_BYTES", 10)
    with pytest.raises(UploadError, match="MiB"):
        taken([file], tmp_path / "kept")
    monkeypatch.setattr(uploads, "MAX_FILES", 0)
    with pytest.raises(UploadError, match="at most 0"):
        taken([file], tmp_path / "kept")
    with pytest.raises(UploadError, match="no picture was given"):
        monkeypatch.setattr(uploads, "MAX_FILES", 5)
        taken([], tmp_path / "kept")


def test_what_can_be_seen_through_is_laid_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "a.png")
    folder = taken([str(tmp_path / "a.png")], tmp_path / "kept")
    with Image.open(folder / "a.png") as image:
        assert image.mode == "RGB" and image.getpixel((5, 5)) == (255, 255, 255)


def test_names_never_leave_the_folder(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    file = picture(given, "..%2f..%2fevil$(x).png")
    folder = taken([file], tmp_path / "kept")
    (kept,) = folder.iterdir()
    assert kept.parent == folder and set(kept.stem) <= set("_.2fevilx")


def test_a_caption_is_one_line(tmp_path: Path) -> None:
    write_caption(tmp_path / "a.png", " a\nthing  here ")
    assert (tmp_path / "a.txt").read_text() == "a thing here\n"


def test_a_caption_goes_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.caption").write_text("old")
    write_caption(tmp_path / "a.png", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.caption": "new\n"}
