"""Adapters and axes as they are written on the command line."""

import pytest

from difflora.commands.axes import parse_axis
from difflora.commands.options import split_adapter
from difflora.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "file", "weight", "text"),
    [
        ("a.safetensors", "a.safetensors", 1, 1),
        ("a.safetensors:0.5", "a.safetensors", 0.5, 0.5),
        ("a.safetensors:-0.5:.25", "a.safetensors", -0.5, 0.25),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1, 1),
        (r"C:\loras\a.safetensors:0.7:0", r"C:\loras\a.safetensors", 0.7, 0),
        ("C:/a b.safetensors:2", "C:/a b.safetensors", 2, 2),
    ],
)
def test_a_weight_is_told_from_the_colon_of_a_drive(
    words: str, file: str, weight: float, text: float
) -> None:
    given = split_adapter(words)
    assert (given.file, given.weight, given.text) == (file, weight, text)


def test_axes_are_read_as_lists_and_ranges() -> None:
    assert parse_axis("weight:neon=0:1:5").values == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert parse_axis("weight:neon=0,0.5").adapter == "neon"
    assert parse_axis("weight=1").adapter is None
    assert parse_axis("seed=1:3:3").values == (1, 2, 3)
    assert parse_axis("adapter=none,neon").values == (None, "neon")
    assert parse_axis("prompt=a, b|c").values == ("a, b", "c")


def test_a_tag_in_an_axis_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="write that into --prompt"):
        parse_axis("prompt=a <lora:neon:1>|b")


@pytest.mark.parametrize(
    "words", ["weight", "size=1,2", "seed:x=1", "seed=1.5", "weight=a", "weight=0:1", "seed=1:2:0"]
)
def test_a_broken_axis_is_refused_with_an_example(words: str) -> None:
    with pytest.raises(ConfigError, match="weight:halftone=0:1:5"):
        parse_axis(words)
