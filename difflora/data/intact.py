"""Damage that decoders let pass: files cut short, overwritten or altered, found from the container alone.

Pillow decodes a PNG without its end and a JPEG whose second half is zeros without a word. What stays
invisible: altered bits inside the entropy-coded data of a JPEG, which carries no checksum.
"""

import re
import zlib

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"

# 0xff is followed by 00 (stuffing), d0-d7 (restart) or ff (fill) inside entropy-coded data; else a marker
# begins
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
_EOI, _SOS = 0xD9, 0xDA

_FOREIGN = (
    (b"GIF8", "a GIF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"8BPS", "a Photoshop file"),
    (b"%!PS", "an EPS file"),
    (b"%PDF", "a PDF"),
    (b"\0\0\0\x0cJXL", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\x05\x16\x07", "a macOS resource file, not the image itself"),
    (b"version https://git-lfs", "a git-lfs pointer, not the image itself (run `git lfs pull`)"),
    (b"PK\x03\x04", "a zip archive"),
    (b"<", "HTML, SVG or other text (a failed download?)"),
)


def container(data: bytes) -> str | None:
    """The Pillow name of the format that the first bytes announce (PNG, JPEG, WEBP, BMP), or None."""
    if data.startswith(PNG):
        return "PNG"
    if data.startswith(JPEG):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if data.startswith(b"BM") else None


def foreign(data: bytes) -> str:
    """What a file that is none of the accepted formats holds, in words."""
    if not data:
        return "the file is empty"
    if data[4:8] == b"ftyp":
        return "it is a HEIC, AVIF or video file"
    for magic, words in _FOREIGN:
        if data.lstrip(b"\xef\xbb\xbf\r\n\t ").startswith(magic) or data.startswith(magic):
            return f"it is {words}"
    return "its content is no known image format"


def damage(data: bytes, kind: str) -> str | None:
    """Why the container is not whole, in words, or None."""
    checks = {"PNG": _png_damage, "JPEG": _jpeg_damage, "WEBP": _webp_damage}
    return checks[kind](data) if kind in checks else None


def _png_damage(data: bytes) -> str | None:
    at = len(PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            break
        critical = (
            not name[0] & 0x20
        )  # an upper-case first letter; others may be broken without harm to pixels
        if critical and zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(
            data[end - 4 : end], "big"
        ):
            return f"PNG chunk {name.decode('latin-1')!r} at byte {at} is damaged (checksum)"
        if name == b"IEND":
            return None
        at = end
    return f"PNG is cut short or damaged: no end chunk in its {len(data)} bytes"


def _jpeg_damage(data: bytes) -> str | None:
    at, scans = 2, 0
    while match := _JPEG_MARKER.search(data, at):
        marker, at = match[1][0], match.end()
        if marker == _EOI:
            return None if scans else "JPEG ends before any picture data"
        scans += marker == _SOS
        at += int.from_bytes(data[at : at + 2], "big")
    return f"JPEG is cut short or overwritten: no end marker in its {len(data)} bytes"


def _webp_damage(data: bytes) -> str | None:
    declared = int.from_bytes(data[4:8], "little") + 8
    return f"WEBP is cut short: {len(data)} bytes of {declared}" if len(data) < declared else None
