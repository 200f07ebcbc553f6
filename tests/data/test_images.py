import re
import struct

import numpy
import pytest
import torch
from PIL import Image

from difflora.data import images
from difflora.data.images import open_image, to_tensor
from difflora.errors import DataError
from tests.data import corpus


def _pixels(image):
    return numpy.asarray(image).astype(int)


def _probe(data):
    with images.pillow_warnings():
        return images.probe(data)


def _opened(tmp_path, data, name="image.png"):
    path = tmp_path / name
    path.write_bytes(data)
    return open_image(path)


@pytest.mark.parametrize("name", corpus.REFUSED)
def test_odd_file_is_refused_with_its_path_and_the_reason(tmp_path, name):
    refused = corpus.REFUSED[name]
    data = refused.make()
    with pytest.raises(DataError, match=refused.reason):
        _probe(data)
    if "transparent" not in refused.reason:  # a finding about the picture, not about the file
        with pytest.raises(DataError, match=rf"{re.escape(name)}: .*({refused.reason})"):
            _opened(tmp_path, data, name)


@pytest.mark.parametrize("name", corpus.READ)
def test_file_is_read_whatever_its_kind_and_name(tmp_path, name):
    data = corpus.READ[name]()
    image = _opened(tmp_path, data, name)
    assert image.mode == "RGB" and image.size == _probe(data) == (64, 48)
    error = abs(_pixels(image) - _pixels(corpus.picture()))
    assert error.max() <= (0 if name in corpus.EXACT else 12)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_and_counted_in_the_size(tmp_path, orientation):
    data = corpus.ORIENTED(orientation)
    image = _opened(tmp_path, data)
    # where the stored top-left pixel is shown, from the EXIF standard
    top, left = {
        1: (0, 0),
        2: (0, -1),
        3: (-1, -1),
        4: (-1, 0),
        5: (0, 0),
        6: (0, -1),
        7: (-1, -1),
        8: (-1, 0),
    }[orientation]
    assert image.size == _probe(data) == ((48, 64) if orientation >= 5 else (64, 48))
    assert (_pixels(image)[top, left] == _pixels(corpus.picture())[0, 0]).all()
    stored, shown = _pixels(corpus.picture()), _pixels(image)
    row = shown[top] if orientation <= 4 else shown[:, left]
    row = row if (row[0] == stored[0, 0]).all() else row[::-1]
    assert (row == stored[0]).all()


def test_first_picture_of_a_phone_file_is_read(tmp_path):
    image = _opened(tmp_path, corpus.PHONE(), "phone.jpg")
    first, second = (abs(_pixels(image) - _pixels(corpus.picture(seed=seed))).mean() for seed in (0, 1))
    assert first < 10 < 40 < second


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path):
    values = numpy.linspace(0, 65535, 64 * 48).reshape(48, 64).round().astype(numpy.uint16)
    shown = _pixels(_opened(tmp_path, corpus.png16(values)))
    assert (shown == numpy.round(values / 257)[..., None]).all()


def test_sixteen_bit_gray_with_a_transparent_value(tmp_path):
    values = numpy.full((48, 64), 1000, numpy.uint16)
    values[:, :32] = 30000
    data = corpus.png16(values, extra=corpus.chunk(b"tRNS", struct.pack(">H", 1000)))
    shown = _pixels(_opened(tmp_path, data))
    assert (shown[:, 32:] == 255).all() and (shown[:, :32] == round(30000 / 257)).all()
    assert _probe(data) == (64, 48)


@pytest.mark.parametrize(
    ("mode", "half"), [("RGBA", (255, 0, 0, 128)), ("LA", (0, 128)), ("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))]
)
def test_alpha_is_laid_over_white(tmp_path, mode, half):
    opaque = (10, 20, 30, 255) if mode == "RGBA" else (10, 255)
    image = Image.new(mode, (64, 48), opaque)
    image.paste(half, (0, 0, 32, 48))
    shown = _pixels(_opened(tmp_path, corpus.encoded(image)))
    colour = numpy.array(half[:-1] if mode == "RGBA" else half[:1] * 3)
    share = half[-1] / 255
    assert abs(shown[0, 0] - (colour * share + 255 * (1 - share))).max() <= 1
    assert (shown[0, 40] == (opaque[:3] if mode == "RGBA" else opaque[0])).all()


@pytest.mark.parametrize("transparency", [5, bytes([255] * 5 + [0])])
def test_palette_with_transparency(tmp_path, transparency):
    image = Image.new("P", (64, 48), 4)
    image.putpalette([value for index in range(6) for value in (index * 40, 10, 10)])
    image.paste(5, (0, 0, 32, 48))
    shown = _pixels(_opened(tmp_path, corpus.encoded(image, transparency=transparency)))
    assert (shown[0, 0] == 255).all() and (shown[0, 40] == (160, 10, 10)).all()


@pytest.mark.parametrize(("mode", "seen"), [("1", 255), ("L", 77), ("RGB", 77)])
def test_one_colour_made_transparent(tmp_path, mode, seen):
    clear = {"1": 0, "L": 0, "RGB": (0, 0, 0)}[mode]
    image = Image.new(mode, (64, 48), clear)
    image.paste(seen if mode != "RGB" else (seen,) * 3, (32, 0, 64, 48))
    data = corpus.encoded(image, transparency=clear)
    shown = _pixels(_opened(tmp_path, data))
    assert (shown[0, 0] == 255).all() and (shown[0, 40] == seen).all()
    assert _probe(data) == (64, 48)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: cannot be read: No such file"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(DataError, match="folder or a device"):
        open_image(tmp_path)


def test_file_beyond_the_byte_limit_is_not_read(tmp_path):
    path = tmp_path / "huge.png"
    with open(path, "wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(DataError, match="at most"):
        open_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_damaged_bytes_give_a_picture_or_a_data_error(kind):
    whole = corpus.encoded(corpus.picture(128, 96), kind)
    rng = numpy.random.default_rng(3)
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 6)):
            data[at] = rng.integers(0, 256)
        data = bytes(data[: rng.integers(len(whole) // 2, len(whole) + 1)])
        with images.pillow_warnings():
            try:
                size = images.probe(data)
                image = images.decode(data)
            except DataError:
                continue
        assert image.mode == "RGB" and image.size == size


def test_a_png_that_lost_any_critical_byte_is_refused():
    whole = corpus.encoded(corpus.picture())
    for at in range(8, len(whole), 7):
        with pytest.raises(DataError):
            _probe(corpus.changed(whole, at))


def test_tensor_spans_minus_one_to_one_with_channels_first():
    image = Image.new("RGB", (20, 30), (0, 255, 51))
    pixels = to_tensor(image)
    assert pixels.shape == (3, 30, 20) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    assert pixels[0].eq(-1).all() and pixels[1].eq(1).all()
    torch.testing.assert_close(pixels[2, 0, 0], torch.tensor(51 / 127.5 - 1))
