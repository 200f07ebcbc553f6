"""Odd files, made on the fly: what must be refused and why, and what must be read and how."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy
from PIL import Image, PngImagePlugin

Bytes = Callable[[], bytes]


def picture(width: int = 64, height: int = 48, *, seed: int = 0) -> Image.Image:
    """A coarse random pattern: compresses to a few kilobytes, differs for every seed."""
    rng = numpy.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=numpy.uint8)
    pixels = numpy.kron(blocks, numpy.ones((8, 8, 1), numpy.uint8))[:height, :width]
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(width: int, height: int, *, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG header that promises a size, with a few zero bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(4096)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")


def png16(values: numpy.ndarray, *, extra: bytes = b"") -> bytes:
    """A 16-bit gray PNG."""
    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def changed(data: bytes, at: int) -> bytes:
    """One byte inverted."""
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def animation(kind: str) -> bytes:
    frames = [picture(seed=seed) for seed in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)


def _jpeg() -> bytes:
    return encoded(picture(256, 192), "JPEG")


def _png() -> bytes:
    return encoded(picture(256, 192))


def _idat_middle() -> bytes:
    data = _png()
    return changed(data, data.index(b"IDAT") + 40)


def _without_iend() -> bytes:
    data = _png()
    return data[: data.index(b"IEND") - 4]


def _bad_header_crc() -> bytes:
    data = _png()
    return changed(data, data.index(b"IHDR") + 18)


def _text_bomb() -> bytes:
    content = b"note\0\0" + zlib.compress(bytes(100_000_000))
    return png_of(64, 48, extra=chunk(b"zTXt", content))


def _empty_idat() -> bytes:
    header = struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Refused:
    make: Bytes
    reason: str  # regular expression


def _cut(make: Bytes, share: float) -> Bytes:
    return lambda: make()[: int(len(make()) * share)]


def _less(make: Bytes, count: int) -> Bytes:
    return lambda: make()[:-count]


def _half_zero(make: Bytes) -> Bytes:
    return lambda: make()[: len(make()) // 2].ljust(len(make()), b"\0")


def _kind(kind: str) -> Bytes:
    return lambda: encoded(picture(), kind)


def _sized(width: int, height: int) -> Bytes:
    return lambda: encoded(Image.new("RGB", (width, height), "red"))


def _fixed(data: bytes) -> Bytes:
    return lambda: data


REFUSED: Mapping[str, Refused] = {
    "zero_bytes.png": Refused(_fixed(b""), "file is empty"),
    "html_404.jpg": Refused(_fixed(b"<!DOCTYPE html><h1>404</h1>"), "HTML"),
    "svg_inside.png": Refused(_fixed(b'\xef\xbb\xbf <svg href="file:///etc/passwd"/>'), "SVG"),
    "lfs_pointer.png": Refused(_fixed(b"version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
    "apple_double.jpg": Refused(_fixed(b"\0\x05\x16\x07" + bytes(60)), "macOS resource"),
    "all_nul.jpg": Refused(_fixed(bytes(5000)), "no known image format"),
    "zip_inside.png": Refused(_fixed(b"PK\x03\x04" + bytes(60)), "zip archive"),
    "gif_inside.png": Refused(_kind("GIF"), "it is a GIF"),
    "tiff_inside.png": Refused(_kind("TIFF"), "it is a TIFF"),
    "avif_inside.jpg": Refused(_fixed(b"\0\0\0\x20ftypavif" + bytes(60)), "HEIC, AVIF"),
    "eps_inside.png": Refused(_fixed(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "EPS"),
    "cut_10_percent.jpg": Refused(_cut(_jpeg, 0.1), "cut short"),
    "cut_half.jpg": Refused(_cut(_jpeg, 0.5), "cut short"),
    "cut_200_bytes.jpg": Refused(_less(_jpeg, 200), "cut short"),
    "cut_2_bytes.jpg": Refused(_less(_jpeg, 2), "cut short"),
    "second_half_zero.jpg": Refused(_half_zero(_jpeg), "overwritten"),
    "only_markers.jpg": Refused(_fixed(b"\xff\xd8\xff\xe0\x00\x04ab\xff\xd9"), "before any picture data"),
    "cut_half.png": Refused(_cut(_png, 0.5), "cut short"),
    "second_half_zero.png": Refused(_half_zero(_png), "damaged"),
    "without_end.png": Refused(_without_iend, "no end chunk"),
    "data_flipped.png": Refused(_idat_middle, "IDAT.*checksum"),
    "header_flipped.png": Refused(_bad_header_crc, "IHDR.*checksum"),
    "too_few_rows.png": Refused(lambda: png_of(256, 192), "cannot be decoded"),
    "empty_data.png": Refused(_empty_idat, "cannot be decoded"),
    "text_bomb.png": Refused(_text_bomb, "cannot be decoded"),
    "pixel_bomb.png": Refused(lambda: png_of(30000, 30000, depth=1, colour=0), "million pixels"),
    "cap_passed.png": Refused(lambda: png_of(9000, 9000), "9000 x 9000 .* 64 million pixels"),
    "endless_row.png": Refused(lambda: png_of(2**31 - 1, 1), "million pixels|cannot be decoded"),
    "no_pixels.png": Refused(lambda: png_of(0, 0), "cannot be decoded|too few"),
    "one_pixel.png": Refused(_sized(1, 1), "1 x 1 pixels are too few"),
    "one_column.png": Refused(_sized(1, 8000), "1 x 8000 pixels are too few"),
    "cut_half.webp": Refused(_cut(lambda: encoded(picture(256, 192), "WEBP"), 0.5), "WEBP is cut short"),
    "cut_half.bmp": Refused(_cut(lambda: encoded(picture(256, 192), "BMP"), 0.5), "cannot be decoded"),
    "animated.webp": Refused(lambda: animation("WEBP"), "animation of 3 frames"),
    "animated.png": Refused(lambda: animation("PNG"), "animation of 3 frames"),
    "invisible.png": Refused(lambda: encoded(Image.new("RGBA", (64, 48), (9, 9, 9, 0))), "transparent"),
    "invisible_gray.png": Refused(lambda: encoded(Image.new("LA", (64, 48), (9, 0))), "transparent"),
    "clip.gif": Refused(_kind("GIF"), "it is a GIF"),
    "photo.heic": Refused(_fixed(b"\0\0\0\x18ftypheic" + bytes(60)), "HEIC"),
}


def _oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), "PNG", exif=exif)


def _many_texts() -> bytes:
    info = PngImagePlugin.PngInfo()
    for number in range(5000):
        info.add_text(f"k{number}", "v")
    return encoded(picture(), pnginfo=info)


def _phone_picture() -> bytes:
    """A JPEG of two pictures, as phones write it."""
    return encoded(picture(), "MPO", quality=95, save_all=True, append_images=[picture(seed=1)])


# Each of them shows `picture()`, or is near it where the format loses something.
READ: Mapping[str, Bytes] = {
    "plain.png": lambda: encoded(picture()),
    "plain.webp": lambda: encoded(picture(), "WEBP", lossless=True),
    "plain.bmp": lambda: encoded(picture(), "BMP"),
    "UPPER.PNG": lambda: encoded(picture()),
    "really_png.jpg": lambda: encoded(picture()),
    "really_bmp.webp": lambda: encoded(picture(), "BMP"),
    "plain.jpeg": lambda: encoded(picture(), "JPEG", quality=100, subsampling=0),
    "progressive.jpg": lambda: encoded(picture(), "JPEG", quality=100, subsampling=0, progressive=True),
    "cmyk.jpg": lambda: encoded(picture().convert("CMYK"), "JPEG", quality=100, subsampling=0),
    "trailing_bytes.jpg": lambda: encoded(picture(), "JPEG", quality=100, subsampling=0) + b"\xff\xda" * 99,
    "bad_profile.png": lambda: encoded(picture(), icc_profile=b"no profile"),
    "many_texts.png": _many_texts,
    "opaque.png": lambda: encoded(picture().convert("RGBA")),
}
EXACT = frozenset(READ) - {"plain.jpeg", "progressive.jpg", "cmyk.jpg", "trailing_bytes.jpg"}
ORIENTED = _oriented
PHONE = _phone_picture
