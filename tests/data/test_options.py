from pathlib import Path

import pytest
from pydantic import ValidationError

from difflora.data.options import DataOptions


def test_every_option_is_described_in_one_sentence():
    for name, field in DataOptions.model_fields.items():
        assert field.description and field.description.endswith("."), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bucket_stepp": 8}, "bucket_stepp"),
        ({"resolution": 500}, "multiple of 8"),
        ({"caption_dropout": 1.5}, "less than or equal to 1"),
        ({"repeats": 0}, "greater than or equal to 1"),
        ({"cache_latents": "yes"}, "'memory', 'disk' or 'off'"),
        ({"buckets": False, "upscale": False}, "upscale=false needs buckets"),
        ({"keep_tokens": 1}, "no effect without shuffle_tags"),
        ({"cache_folder": "c"}, "needs cache_latents='disk'"),
    ],
)
def test_what_cannot_be_used_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        DataOptions(data=Path("x"), **options)


def test_data_is_required_and_options_are_frozen():
    with pytest.raises(ValidationError, match="data"):
        DataOptions()  # pyright: ignore[reportCallIssue]
    options = DataOptions(data=Path("x"))
    with pytest.raises(ValidationError, match="frozen"):
        options.repeats = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_the_home_folder_is_meant_by_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("USERPROFILE", "/home/ann")
    options = DataOptions(data=Path("~/cats"), cache_latents="disk", cache_folder=Path("~/cache"))
    assert (options.data, options.cache_folder) == (Path("/home/ann/cats"), Path("/home/ann/cache"))
    with pytest.raises(ValidationError, match="no home folder is known"):
        DataOptions(data=Path("~nobody-of-that-name/cats"))


def test_small_slips_are_mended():
    options = DataOptions(data=Path("x"), caption_extension="tags", trigger=" ohwx \n cat ")
    assert (options.caption_extension, options.trigger) == (".tags", "ohwx cat")
