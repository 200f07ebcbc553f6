"""Images that come through the page: decoded, looked at, and written anew before anything uses them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from difflora import DiffloraError

MAX_FILES = 2000
MAX_BYTES = 64 << 20
MAX_PIXELS = 64_000_000
MAX_CAPTION = 64 * 1024
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CAPTIONS = (".txt", ".caption")
_ODD = re.compile(r"[^\w .+-]")


class UploadError(DiffloraError):
    """Files that cannot be taken; the message names each with the reason."""


def taken(files: Sequence[str], folder: Path) -> Path:
    """Images and captions from temporary files, written into a new folder below `folder`.

    A picture is decoded, laid over white and stored as PNG, so that nothing of the original file but its
    pixels stays. Raises UploadError naming every file that is no picture or caption, or is too large; nothing
    is kept then. One picture is in memory at a time.
    """
    if len(files) > MAX_FILES:
        raise UploadError(f"{len(files)} files, at most {MAX_FILES} are taken at once.")
    pictures: dict[str, Path] = {}
    captions: dict[str, str] = {}
    problems: list[str] = []
    for file in map(Path, files):
        try:
            _take(file, pictures, captions)
        except UploadError as error:
            problems.append(f"{file.name}: {error}")
    problems += [f"{stem}.txt: no picture has this name" for stem in captions if stem not in pictures]
    if problems:
        raise UploadError("these files cannot be used:\n" + "\n".join(problems[:20]))
    if not pictures:
        raise UploadError("no picture was given: PNG, JPEG or WebP, with captions in .txt files beside.")
    digest = hashlib.sha256()
    for stem, picture in sorted(pictures.items()):
        digest.update(stem.encode() + picture.read_bytes() + captions.get(stem, "").encode())
    target = folder / digest.hexdigest()[:16]
    target.mkdir(parents=True, exist_ok=True)
    for stem, picture in pictures.items():
        _decoded(picture).save(target / f"{stem}.png")
        if stem in captions:
            (target / f"{stem}.txt").write_text(captions[stem], encoding="utf-8")
    return target


def write_caption(picture: Path, caption: str) -> None:
    """Writes the caption of a picture into the file beside it that holds one, else into a .txt."""
    if len(caption.encode()) > MAX_CAPTION:
        raise UploadError(f"the caption of {picture.name} is longer than {MAX_CAPTION} bytes.")
    for file in _captions(picture) or [picture.with_suffix(".txt")]:
        file.write_text(" ".join(caption.split()) + "\n", encoding="utf-8")


def _captions(picture: Path) -> list[Path]:
    """The files beside a picture that hold its caption, and say the same where there are several."""
    return [
        file
        for ending in CAPTIONS
        if (file := picture.with_suffix(ending)).is_file() and not file.is_symlink()
    ]


def _take(file: Path, pictures: dict[str, Path], captions: dict[str, str]) -> None:
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise UploadError(f"has {size >> 20} MiB, at most {MAX_BYTES >> 20} are taken")
    stem = _ODD.sub("_", file.stem).strip(" .") or "image"
    if file.suffix.lower() == ".txt":
        if size > MAX_CAPTION:
            raise UploadError(f"has {size} bytes, a caption at most {MAX_CAPTION}")
        try:
            captions[stem] = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UploadError("is not UTF-8 text: save it as UTF-8") from error
    elif file.suffix.lower() in PICTURES:
        if stem in pictures:
            raise UploadError("two pictures have this name: rename one")
        _decoded(file)
        pictures[stem] = file
    else:
        raise UploadError(f"expected {', '.join(PICTURES)} or .txt")


def _decoded(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UploadError(f"has {image.width}×{image.height} pixels, at most {MAX_PIXELS} are taken")
            upright = ImageOps.exif_transpose(image)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            white = Image.new("RGBA", upright.size, "white")
            return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UploadError(f"is no picture that can be read: {error}") from error
