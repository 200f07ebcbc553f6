import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from difflora.data.buckets import assign, assign_by, crop_origin, fit_image, grid
from difflora.data.options import DataOptions
from difflora.errors import ConfigError

GRIDS = [
    {"resolution": 512, "step": 64, "min_edge": 256, "max_edge": 1024},
    {"resolution": 1024, "step": 64, "min_edge": 512, "max_edge": 2048},
    {"resolution": 1024, "step": 32, "min_edge": 256, "max_edge": 2048},
    {"resolution": 128, "step": 8, "min_edge": 64, "max_edge": 256},
    {"resolution": 768, "step": 64, "min_edge": 768, "max_edge": 768},
]
grids = st.sampled_from(GRIDS)
edges = st.integers(16, 8000)
sizes = st.tuples(edges, edges)


def one(size, *, upscale=True, **options):
    return assign([size], upscale=upscale, **options)


@pytest.mark.parametrize("options", GRIDS)
def test_grid_laws(options):
    found = grid(**options)
    assert (options["resolution"],) * 2 in found and len(set(found)) == len(found)
    for width, height in found:
        assert (height, width) in found
        assert width * height <= options["resolution"] ** 2
        assert width % options["step"] == height % options["step"] == 0
        assert options["min_edge"] <= min(width, height) <= max(width, height) <= options["max_edge"]


def test_the_grid_of_kohya_at_512():
    pairs = {(256, 1024), (320, 704), (320, 768), (384, 640), (448, 576), (512, 512)}
    # kohya also keeps narrower ones such as 256 x 832: same height, less of the area
    assert pairs <= set(grid(**GRIDS[0])) and len(grid(**GRIDS[0])) < 40


@given(sizes, grids)
def test_the_bucket_is_the_nearest_in_log_ratio(size, options):
    width, height = one(size, **options).sizes[0]
    distance = abs(math.log(size[0] / size[1]) - math.log(width / height))
    best = min(abs(math.log(size[0] / size[1]) - math.log(w / h)) for w, h in grid(**options))
    assert distance == pytest.approx(best, abs=1e-12)


@given(sizes, grids, st.booleans())
def test_a_turned_image_gets_the_turned_bucket(size, options, upscale):
    width, height = one(size, upscale=upscale, **options).sizes[0]
    assert one(size[::-1], upscale=upscale, **options).sizes[0] == (height, width)


@given(sizes, grids, st.booleans())
def test_bucket_and_report_laws(size, options, upscale):
    found = one(size, upscale=upscale, **options)
    ((width, height), crop, scale) = found.sizes[0], found.crop[0], found.scale[0]
    assert width % options["step"] == height % options["step"] == 0 and min(width, height) > 0
    assert width * height <= options["resolution"] ** 2
    assert max(width, height) <= options["max_edge"]
    assert scale == max(width / size[0], height / size[1])
    assert crop == pytest.approx(1 - width * height / (size[0] * scale * size[1] * scale), abs=1e-9)
    assert 0 <= crop < 1
    if not upscale and min(size) >= options["step"]:
        assert scale <= 1


@given(grids, st.sampled_from([0.9, 0.95, 0.99, 1.0, 1.01, 1.05, 1.1]))
def test_near_square_images_are_square(options, ratio):
    if ratio in (0.9, 1.1) and options["step"] < 64:
        return
    size = (int(3000 * ratio), 3000)
    square = (options["resolution"],) * 2
    found = one(size, **options)
    assert found.sizes[0] == square or found.crop[0] < 1 - min(ratio, 1 / ratio)


@pytest.mark.parametrize("step", [32, 64])
def test_square_images_are_square_whatever_their_size(step):
    for edge in (100, 511, 512, 513, 2000):
        found = one((edge, edge), resolution=512, step=step, min_edge=256, max_edge=1024)
        assert found.sizes == ((512, 512),) and found.crop == (0.0,)


def test_without_upscale_a_small_image_keeps_its_own_size():
    options = GRIDS[0]
    assert one((300, 200), upscale=False, **options).sizes == ((256, 192),)
    assert one((300, 200), **options).sizes == ((640, 384),)
    assert one((3000, 2000), upscale=False, **options).sizes == ((640, 384),)
    assert one((40, 200), upscale=False, **options).sizes == ((64, 192),)  # nothing below one step


def test_a_single_square_is_the_case_of_equal_limits():
    options = {"resolution": 512, "step": 8, "min_edge": 512, "max_edge": 512}
    found = assign([(100, 900), (900, 100), (512, 512)], upscale=True, **options)
    assert set(found.sizes) == {(512, 512)} and found.groups == {(512, 512): (0, 1, 2)}


@given(st.lists(sizes, max_size=30), grids)
def test_groups_part_the_indices(several, options):
    found = assign(several, upscale=True, **options)
    assert sorted(index for members in found.groups.values() for index in members) == list(
        range(len(several))
    )
    for bucket, members in found.groups.items():
        assert members and list(members) == sorted(members)
        assert all(found.sizes[index] == bucket for index in members)


def test_limits_that_contradict_are_errors():
    with pytest.raises(
        ConfigError, match="resolution 500 is no multiple of bucket_step 64: set resolution to 512"
    ):
        grid(resolution=500, step=64, min_edge=256, max_edge=1024)
    for limits in ({"min_edge": 576, "max_edge": 1024}, {"min_edge": 256, "max_edge": 448}):
        with pytest.raises(ConfigError, match="must enclose the resolution"):
            grid(resolution=512, step=64, **limits)


def test_options_fall_back_on_the_base(tmp_path):
    def found(native, **options):
        return assign_by(
            [(300, 200), (4000, 1000)], DataOptions(data=tmp_path, **options), native=native
        ).sizes

    assert found(512) == ((640, 384), (1024, 256))
    assert found(1024)[0] == (1216, 832)
    assert found(128) == ((152, 104), (256, 64))
    assert found(512, resolution=768) == found(768)
    assert found(512, buckets=False) == ((512, 512),) * 2
    assert found(512, max_bucket_edge=640)[1] == (640, 256)
    assert found(512, upscale=False)[0] == (256, 192)


@given(st.tuples(st.integers(16, 90), st.integers(16, 90)), st.sampled_from([(16, 16), (24, 16), (8, 32)]))
def test_a_fitted_image_has_the_size_of_its_bucket(size, bucket):
    image = Image.new("RGB", size, (10, 20, 30))
    fitted = fit_image(image, bucket)
    assert fitted.size == bucket and set(fitted.getcolors() or []) == {(bucket[0] * bucket[1], (10, 20, 30))}
    left, top = crop_origin(size, bucket)
    assert left >= 0 and top >= 0 and 0 in (left, top)


def test_the_centre_is_kept():
    pixels = numpy.zeros((32, 96, 3), numpy.uint8)
    pixels[:, 32:64] = 255
    image = Image.fromarray(pixels)
    assert (numpy.asarray(fit_image(image, (32, 32))) == 255).all()
    assert crop_origin(image.size, (32, 32)) == (32, 0)
    assert crop_origin(image.size, (64, 64)) == (64, 0)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    assert (numpy.asarray(fit_image(turned, (32, 32))) == 255).all()
    assert crop_origin(turned.size, (32, 32)) == (0, 32)


def test_an_image_that_fits_is_unchanged():
    image = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=numpy.uint8))
    assert fit_image(image, (48, 64)).tobytes() == image.tobytes()


def test_mirroring_commutes_with_fitting():
    image = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (70, 99, 3), dtype=numpy.uint8))
    mirror = Image.Transpose.FLIP_LEFT_RIGHT
    one_way = numpy.asarray(fit_image(image.transpose(mirror), (48, 64))).astype(int)
    other_way = numpy.asarray(fit_image(image, (48, 64)).transpose(mirror)).astype(int)
    assert abs(one_way - other_way).max() <= 1
