"""Image files to RGB pixels, the same for every kind of file; refuses what is damaged.

PNG, JPEG, WEBP and BMP, known by content and not by name. EXIF rotation is applied, alpha is laid over white,
16-bit gray is scaled, CMYK and palettes are converted. Colour profiles are not applied, as in peers.
Animations are refused: which frame was meant is for their owner to say.
"""

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import torch
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from torch import Tensor

from difflora.data import intact
from difflora.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp")
# Known to be pictures, so their presence is a mistake to report and not a file to pass over.
REFUSED_EXTENSIONS = (
    *(".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".eps", ".ico"),
    *(".tga", ".ppm", ".pgm", ".exr", ".hdr", ".dng", ".cr2", ".nef", ".arw"),
)
MAX_PIXELS = 64_000_000
MAX_BYTES = 512 * 1024**2
MIN_EDGE = 16
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"})
_ROTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(path: Path) -> Image.Image:
    """The whole picture, upright, mode RGB. Raises DataError naming the file and the reason."""
    try:
        data = read_bytes(path)
        with pillow_warnings():
            return decode(data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def to_tensor(image: Image.Image) -> Tensor:
    """RGB pixels as float32 (3, height, width), -1 .. 1."""
    pixels = torch.from_numpy(numpy.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).float().div(127.5).sub(1.0).contiguous()


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file of acceptable length. Raises DataError with the reason alone."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            # opening a pipe would wait for ever
            raise DataError("it is a folder or a device, not a file")
        if facts.st_size > MAX_BYTES:
            raise DataError(f"the file has {facts.st_size} bytes, at most {MAX_BYTES} are read")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Pillow's warnings about metadata are silent, its warning about huge pictures is an error.

    Warning filters belong to the process: enter once around a thread pool, not inside its threads.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\..*")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def probe(data: bytes) -> tuple[int, int]:
    """(width, height) of the upright picture, after all its data were decoded and every check passed.

    Raises DataError with the reason alone. Call inside `pillow_warnings`.
    """
    with _opened(data) as image:
        width, height = image.size
        try:
            # A JPEG is read to its end but transformed at an eighth of its size: four times faster than in
            # full.
            image.draft(image.mode, (1, 1))
            image.load()
            turned = _orientation(image) >= 5
            invisible = _has_alpha(image) and _with_alpha(image).getchannel("A").getextrema()[1] == 0
        except Exception as error:
            raise _undecodable(error) from error
        if invisible:
            raise DataError("every pixel is fully transparent")
        return (height, width) if turned else (width, height)


def decode(data: bytes) -> Image.Image:
    """The whole picture, upright, mode RGB.

    Raises DataError with the reason alone. Call inside `pillow_warnings`.
    """
    with _opened(data) as image:
        try:
            image.load()
            rotation = _ROTATION.get(_orientation(image))
            upright = _to_rgb(image)
        except Exception as error:
            raise _undecodable(error) from error
        return upright if rotation is None else upright.transpose(rotation)


def _opened(data: bytes) -> Image.Image:
    """The file opened, and every check passed that needs no pixels."""
    kind = intact.container(data)
    if kind is None:
        raise DataError(f"{intact.foreign(data)}; accepted are {', '.join(_FORMATS)}")
    if reason := intact.damage(data, kind):
        raise DataError(reason)
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        frames = getattr(image, "n_frames", 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller") from error
    except UnidentifiedImageError as error:
        # its own message holds a memory address
        raise DataError(f"cannot be decoded: the {kind} header is damaged") from error
    except Exception as error:
        raise _undecodable(error) from error
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{image.width} x {image.height} is more than {MAX_PIXELS // 1_000_000} million pixels; "
            "make it smaller"
        )
    if min(image.size) < MIN_EDGE:
        raise DataError(f"{image.width} x {image.height} pixels are too few, both edges need {MIN_EDGE}")
    # Phones write JPEG files of several pictures (format MPO); their first one is the photograph.
    if frames > 1 and image.format in ("PNG", "WEBP"):
        raise DataError(f"it is an animation of {frames} frames; save the one to learn from as a still image")
    if image.mode not in _MODES:
        raise DataError(f"pixel format {image.mode} is not supported; save it as an RGB PNG")
    return image


def _undecodable(error: Exception) -> DataError:
    """Decoders raise nearly anything on damaged input: every error of theirs is a finding about the file."""
    return DataError(f"cannot be decoded: {error or type(error).__name__}")


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(Base.Orientation, 1)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info


def _with_alpha(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I;16"):
        return image.convert("RGBA")
    gray = _scaled(image)
    transparent = numpy.asarray(image) == image.info["transparency"]
    gray.putalpha(Image.fromarray(numpy.where(transparent, 0, 255).astype(numpy.uint8)))
    return gray.convert("RGBA")


def _scaled(image: Image.Image) -> Image.Image:
    """16-bit gray as 8-bit gray; Pillow's own conversion clips at 255."""
    gray = numpy.asarray(image, dtype=numpy.uint32)
    return Image.fromarray(((gray * 255 + 32767) // 65535).astype(numpy.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    if _has_alpha(image):
        rgba = _with_alpha(image)
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return (_scaled(image) if image.mode.startswith("I;16") else image).convert("RGB")
