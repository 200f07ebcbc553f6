import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from difflora.data.folder import scan
from difflora.data.options import DataOptions
from difflora.errors import DataError
from tests.data import corpus


def put(
    root: Path, name: str, *, caption: str | bytes | None = "a picture", seed: int = 0, ending=".txt"
) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(corpus.encoded(corpus.picture(seed=seed)))
    if caption is not None:
        data = caption.encode() if isinstance(caption, str) else caption
        path.with_suffix(ending).write_bytes(data)
    return path


def scanned(root: Path, **options):
    return scan(DataOptions(data=root, **options))


def problems(root: Path, **options) -> dict[str, str]:
    """Name -> reason, from the message of the one error."""
    with pytest.raises(DataError) as caught:
        scanned(root, **options)
    lines = [line.strip() for line in str(caught.value).splitlines() if line.startswith("  ")]
    return dict(line.split(": ", 1) for line in lines)


# The corpus


@pytest.mark.parametrize("name", corpus.REFUSED)
def test_a_lone_odd_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(corpus.REFUSED[name].make())
    found = problems(tmp_path, trigger="x")
    assert list(found) == [name] and re.search(corpus.REFUSED[name].reason, found[name])
    assert problems(tmp_path, trigger="x", skip_bad=True) == found  # nothing is left to learn from


def test_all_odd_files_among_good_ones_are_named_at_once(tmp_path):
    for name, refused in corpus.REFUSED.items():
        (tmp_path / name).write_bytes(refused.make())
    good = {put(tmp_path, f"good{index:02}.png", seed=index).name for index in range(20)}
    found = problems(tmp_path, trigger="x")
    assert set(found) == set(corpus.REFUSED)
    kept = scanned(tmp_path, trigger="x", skip_bad=True)
    assert {item.name for item in kept.items} == good
    assert {skipped.name: skipped.reason for skipped in kept.skipped} == found


def test_every_readable_kind_is_taken(tmp_path):
    for name, make in corpus.READ.items():
        (tmp_path / name).write_bytes(make())
    names = [name for name in corpus.READ if name not in ("plain.webp", "plain.bmp", "plain.jpeg")]
    for name in set(corpus.READ) - set(names):
        (tmp_path / name).rename(tmp_path / f"other_{name.replace('.', '_')}{Path(name).suffix}")
    found = scanned(tmp_path, trigger="x")
    assert len(found.items) == len(corpus.READ) and not found.skipped


def test_pipe_link_to_nowhere_link_loop_and_folder_named_as_images(tmp_path):
    put(tmp_path, "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    found = problems(tmp_path, trigger="x")
    assert set(found) == {"pipe.png", "nowhere.png", "loop.png", "folder.png"}


# Layout


def test_flat_folder(tmp_path):
    put(tmp_path, "b.png", caption="second")
    put(tmp_path, "a.jpg", caption="first", ending=".caption")
    found = scanned(tmp_path, repeats=3)
    assert [(item.name, item.caption, item.repeats) for item in found.items] == [
        ("a.jpg", "first", 3),
        ("b.png", "second", 3),
    ]
    assert found.sizes == ((64, 48),) * 2 and found.repeats == (3, 3)


def test_numbered_folders_give_repeats_and_captions(tmp_path):
    put(tmp_path, "10_red cat/x.png", caption=None)
    put(tmp_path, "10_red cat/y.png", caption="a cat, sitting")
    put(tmp_path, "2_dog/x.png", caption=None)
    whole = scanned(tmp_path, repeats=2)
    assert [(item.name, item.caption, item.repeats) for item in whole.items] == [
        ("10_red cat/x.png", "red cat", 20),
        ("10_red cat/y.png", "a cat, sitting", 20),
        ("2_dog/x.png", "dog", 4),
    ]
    alone = scanned(tmp_path / "10_red cat")
    assert [(item.name, item.caption, item.repeats) for item in alone.items] == [
        ("x.png", "red cat", 10),
        ("y.png", "a cat, sitting", 10),
    ]


def test_the_folder_may_be_given_as_a_dot(tmp_path, monkeypatch):
    put(tmp_path, "4_cat/x.png", caption=None)
    monkeypatch.chdir(tmp_path / "4_cat")
    (item,) = scanned(Path(".")).items
    assert (item.caption, item.repeats) == ("cat", 4)


@pytest.mark.parametrize("repeats", ["0", "2024"])
def test_number_that_cannot_mean_repeats(tmp_path, repeats):
    put(tmp_path, f"{repeats}_photos/x.png")
    assert f"{repeats} repeats" in problems(tmp_path)[f"{repeats}_photos/"]
    assert f"{repeats} repeats" in problems(tmp_path / f"{repeats}_photos")["./"]
    assert "./" in problems(tmp_path / f"{repeats}_photos", skip_bad=True)
    put(tmp_path, "1_cat/x.png")
    assert [item.name for item in scanned(tmp_path, skip_bad=True).items] == ["1_cat/x.png"]


def test_images_that_would_not_be_read_are_named(tmp_path):
    put(tmp_path, "1_cat/x.png")
    put(tmp_path, "1_cat/more/deeper/x.png")
    put(tmp_path, "extra/x.png")
    (tmp_path / "3_empty").mkdir()
    found = problems(tmp_path)
    assert set(found) == {"1_cat/more/", "extra/", "3_empty/"}
    assert "1_extra" in found["extra/"]
    kept = scanned(tmp_path, skip_bad=True)
    assert [item.name for item in kept.items] == ["1_cat/x.png"]
    assert {problem.name for problem in kept.skipped} == set(found)


def test_images_both_here_and_in_a_folder(tmp_path):
    put(tmp_path, "x.png")
    put(tmp_path, "10_cat/y.png")
    assert set(problems(tmp_path)) == {"10_cat/"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, r"holds no image\. Expected files ending in \.png"),
        (lambda root: (root / "1_a").mkdir(), "holds no image, nor does any of its 1 folders"),
        (lambda root: (root / "deep" / "er").mkdir(parents=True), "nor does any of its 1 folders"),
        (lambda root: put(root, "cats/x.png"), r"these folders inside it do:\n  cats\n.*1_cats"),
        (lambda root: (root / "notes.txt").write_text("x"), "holds no image"),
    ],
)
def test_folder_without_images_says_so_and_what_to_do(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        scanned(tmp_path, trigger="x", skip_bad=True)


def test_data_that_is_no_folder(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        scanned(tmp_path / "gone")
    with pytest.raises(DataError, match="is a file"):
        scanned(put(tmp_path, "x.png"))


def test_hidden_and_system_files_are_no_data(tmp_path):
    put(tmp_path, "x.png")
    (tmp_path / "._x.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    put(tmp_path, "__MACOSX/._x.png")
    put(tmp_path, "__MACOSX/x.png")
    put(tmp_path, ".cache/x.png")
    found = scanned(tmp_path)
    assert [item.name for item in found.items] == ["x.png"] and not found.ignored


def test_other_files_are_listed_as_ignored(tmp_path):
    put(tmp_path, "x.png")
    for name in ("orphan.txt", "README.md", "x_sd.npz"):
        (tmp_path / name).write_text("x")
    assert scanned(tmp_path).ignored == ("orphan.txt", "README.md", "x_sd.npz")


# Captions


def test_every_bad_caption_is_named_with_byte_and_place(tmp_path):
    put(tmp_path, "cp1252.png", caption=b"the cat\x92s hat")
    put(tmp_path, "cp932.png", caption="猫の帽子".encode("cp932"))
    put(tmp_path, "gbk.png", caption="猫的帽子".encode("gbk"))
    put(tmp_path, "utf16le.png", caption="a cat".encode("utf-16"))
    put(tmp_path, "utf16be.png", caption=b"\xfe\xff" + "a cat".encode("utf-16-be"))
    put(tmp_path, "nul.png", caption="a\0cat")
    put(tmp_path, "empty.png", caption="")
    put(tmp_path, "blank.png", caption=" \r\n\t")
    put(tmp_path, "long.png", caption="word " * 200_000)
    put(tmp_path, "tag.png", caption="a cat <lora:cats:0.7>")
    put(tmp_path, "missing.png", caption=None)
    put(tmp_path, "wrong_ending.png", ending=".text")
    (tmp_path / "folder.png").write_bytes(corpus.encoded(corpus.picture()))
    (tmp_path / "folder.txt").mkdir()
    put(tmp_path, "good.png")
    expected = {
        "cp1252.png": r"caption cp1252\.txt is not UTF-8: byte 0x92 at offset 7 \(.*1252.*'’'\)",
        "cp932.png": "byte 0x94 at offset 0",
        "gbk.png": "byte 0xb5 at offset 2",
        "utf16le.png": "UTF-16",
        "utf16be.png": "UTF-16",
        "nul.png": r"control character '\\x00'",
        "empty.png": "empty.txt is empty",
        "blank.png": "blank.txt is empty",
        "long.png": "1000000 bytes",
        "tag.png": "<lora:cats:0.7>",
        "missing.png": "no caption: add a .txt or .caption file",
        "wrong_ending.png": "no caption",
        "folder.png": "cannot be read",
    }
    found = problems(tmp_path)
    assert set(found) == set(expected)
    for name, reason in expected.items():
        assert re.search(reason, found[name]), found[name]
    kept = scanned(tmp_path, skip_bad=True)
    assert [item.name for item in kept.items] == ["good.png"]
    assert {problem.name for problem in kept.skipped} == set(expected)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"\xef\xbb\xbfa cat", "a cat"),
        (b"a cat\r\n", "a cat"),
        (b"a cat,\rsitting", "a cat, sitting"),
        (b"two\n\nlines", "two lines"),
        ("שלום \u200bcat".encode(), "שלום \u200bcat"),
        ("чёрный кот, 猫".encode(), "чёрный кот, 猫"),
        (b"word " * 400, ("word " * 400).strip()),
    ],
)
def test_caption_text(tmp_path, written, read):
    put(tmp_path, "x.png", caption=written)
    assert scanned(tmp_path).items[0].caption == read


def test_image_and_caption_problems_of_one_image_are_both_named(tmp_path):
    path = put(tmp_path, "x.png", caption=b"\x92")
    path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        scanned(tmp_path)
    assert "x.png: caption" in str(caught.value) and "x.png: the file is empty" in str(caught.value)


def test_trigger_or_one_caption_stand_in_for_files(tmp_path):
    put(tmp_path, "x.png", caption=None)
    put(tmp_path, "y.png", caption=b"\x92 not even read")
    assert set(problems(tmp_path)) == {"x.png", "y.png"}
    assert set(problems(tmp_path, trigger="ohwx")) == {"y.png"}
    found = scanned(tmp_path, caption="a cat")
    assert [item.caption for item in found.items] == ["a cat", "a cat"]
    assert found.ignored == ("y.txt",)


def test_one_caption_also_replaces_the_folder_name(tmp_path):
    put(tmp_path, "10_cat/x.png", caption=None)
    assert scanned(tmp_path, caption="a dog").items[0].caption == "a dog"


def test_same_stem_is_named_on_both(tmp_path):
    put(tmp_path, "a.png")
    put(tmp_path, "a.jpg")
    put(tmp_path, "b.png")
    put(tmp_path, "B.webp")
    put(tmp_path, "c.png")
    found = problems(tmp_path)
    assert set(found) == {"a.png", "a.jpg", "b.png", "B.webp"}
    assert "a.jpg" in found["a.png"] and "a.png" in found["a.jpg"]
    assert [item.name for item in scanned(tmp_path, skip_bad=True).items] == ["c.png"]


def test_same_stem_in_different_folders_is_fine(tmp_path):
    put(tmp_path, "1_a/x.png")
    put(tmp_path, "1_b/x.png")
    assert len(scanned(tmp_path).items) == 2


def test_caption_ending_in_any_case_but_not_in_two(tmp_path):
    put(tmp_path, "a.png", ending=".TXT", caption="found")
    assert scanned(tmp_path).items[0].caption == "found"
    (tmp_path / "a.txt").write_text("found")
    assert "upper and lower case" in problems(tmp_path)["a.png"]


def test_two_caption_files_must_agree(tmp_path):
    put(tmp_path, "a.png", caption="one")
    (tmp_path / "a.caption").write_text("one\n")
    assert scanned(tmp_path).items[0].caption == "one"
    (tmp_path / "a.caption").write_text("two")
    assert "different things" in problems(tmp_path)["a.png"]
    assert scanned(tmp_path, caption_extension="caption").items[0].caption == "two"
    assert scanned(tmp_path, caption_extension=".txt").items[0].caption == "one"


# Order and identity


def test_order_is_by_name_whatever_the_case(tmp_path):
    names = ["b.png", "A.png", "a1.png", "C.png", "é.png"]
    for name in names:
        put(tmp_path, name)
    assert [item.name for item in scanned(tmp_path).items] == ["A.png", "a1.png", "b.png", "C.png", "é.png"]


def test_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    one = tmp_path / "one"
    put(one, "a.png")
    put(one, "b.png", seed=1)
    before = scanned(one)
    moved = scanned(Path(shutil.move(one, tmp_path / "two")))
    assert moved.fingerprint == before.fingerprint
    assert scanned(moved.root, repeats=2).fingerprint != before.fingerprint
    (moved.root / "a.txt").write_text("another picture")
    other_caption = scanned(moved.root)
    assert other_caption.fingerprint != before.fingerprint
    put(moved.root, "a.png", seed=2)
    assert scanned(moved.root).fingerprint not in (before.fingerprint, other_caption.fingerprint)


def test_item_carries_the_hash_of_the_file(tmp_path):
    path = put(tmp_path, "a.png")
    assert scanned(tmp_path).items[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_process_settings_of_pillow_are_as_before(tmp_path):
    put(tmp_path, "a.png")
    before = Image.MAX_IMAGE_PIXELS
    scanned(tmp_path)
    assert before == Image.MAX_IMAGE_PIXELS
