from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difflora.data.captions import caption_for, read_caption, with_trigger, without_trigger
from difflora.data.dataset import Item
from difflora.data.options import DataOptions
from difflora.data.plan import Sample
from difflora.errors import ConfigError, DataError
from difflora.recipe import Request

TAGS = "one, two, three, four, five, six"


def spoken(caption=TAGS, *, seed=0, epoch=0, sample=None, **options):
    item = Item(Path("x.png"), "x.png", caption, 1, (64, 64), "0" * 64)
    sample = Sample(0, 0) if sample is None else sample
    return caption_for(item, DataOptions(data=Path("x"), **options), seed=seed, epoch=epoch, sample=sample)


@pytest.mark.parametrize(
    ("caption", "trigger", "expected"),
    [
        ("a hat", "ohwx", "ohwx, a hat"),
        ("", "ohwx", "ohwx"),
        ("a hat", "", "a hat"),
        ("photo of ohwx man", "ohwx", "photo of ohwx man"),
        ("photo of OHWX man", "ohwx", "photo of OHWX man"),
        ("a category", "cat", "cat, a category"),
        ("cats", "cat", "cat, cats"),
        ("(cat), sitting", "cat", "(cat), sitting"),
        ("c.t", "c.t", "c.t"),
        ("cat", "c.t", "c.t, cat"),
        ("a <cat> toy", "<cat>", "a <cat> toy"),
    ],
)
def test_trigger(caption, trigger, expected):
    assert with_trigger(caption, trigger) == expected
    assert with_trigger(expected, trigger) == expected
    assert spoken(caption, trigger=trigger) == expected


@pytest.mark.parametrize(
    ("caption", "trigger", "instead", "expected"),
    [
        ("ohwx, a hat", "ohwx", "", "a hat"),
        ("a hat, ink style", "ink style", "", "a hat"),
        ("a hat, INK style, old", "ink style", "", "a hat, old"),
        ("photo of ohwx man", "ohwx", "", "photo of man"),
        ("photo of ohwx man", "ohwx man", "man", "photo of man"),
        ("ohwx", "ohwx", "", ""),
        ("a category", "cat", "dog", "a category"),
        ("a cat and a cat", "cat", r"\1", r"a \1 and a \1"),
    ],
)
def test_a_caption_without_its_trigger(caption, trigger, instead, expected):
    assert without_trigger(caption, trigger, instead) == expected


@given(st.sampled_from([TAGS, "", "a hat, with ohwx", "OHWX"]))
def test_what_has_lost_its_trigger_does_not_have_it_again(caption):
    lost = without_trigger(with_trigger(caption, "ohwx"), "ohwx")
    assert "ohwx" not in lost.lower() and without_trigger(lost, "ohwx") == lost


def test_a_caption_that_is_read_can_be_drawn(tmp_path):
    """A control character that a request refuses is refused in a caption as well, those of C1 too."""
    for code in range(0x100):
        (tmp_path / "x.txt").write_text(f"a red{chr(code)}hat", encoding="utf-8", newline="")
        try:
            Request(prompt=read_caption(tmp_path / "x.txt"))
        except DataError:
            with pytest.raises(ConfigError):
                Request(prompt=f"a red{chr(code)}hat")
    (tmp_path / "x.txt").write_text("a red\x85hat", encoding="utf-8")
    with pytest.raises(DataError, match=r"control character '\\x85'"):
        read_caption(tmp_path / "x.txt")


def test_without_options_a_caption_is_itself():
    assert spoken("a cat,sitting,  there") == "a cat,sitting,  there"


@given(st.integers(0, 9), st.integers(0, 2**40), st.integers(0, 50))
def test_shuffling_keeps_the_tags_and_the_first_ones_in_place(keep, seed, epoch):
    options = {"shuffle_tags": True, "keep_tokens": keep, "trigger": "ohwx"}
    text = spoken(seed=seed, epoch=epoch, **options)
    tags = text.split(", ")
    assert tags[0] == "ohwx" and tags[1 : 1 + keep] == TAGS.split(", ")[:keep]
    assert sorted(tags[1:]) == sorted(TAGS.split(", "))
    assert text == spoken(seed=seed, epoch=epoch, **options)


def test_every_sample_and_epoch_draws_anew():
    orders = {
        spoken(shuffle_tags=True, epoch=epoch, sample=Sample(index, turn))
        for epoch in range(4)
        for index in range(4)
        for turn in range(4)
    }
    assert len(orders) > 55


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.1, 60, 140), (1.0, 1000, 1000)])
def test_share_of_dropped_captions(share, low, high):
    texts = [spoken(caption_dropout=share, trigger="ohwx", sample=Sample(index, 0)) for index in range(1000)]
    assert low <= texts.count("") <= high
    assert set(texts) <= {"", f"ohwx, {TAGS}"}


def test_dropping_and_shuffling_are_drawn_apart():
    plain = [spoken(shuffle_tags=True, sample=Sample(index, 0)) for index in range(50)]
    mixed = [spoken(shuffle_tags=True, caption_dropout=0.5, sample=Sample(index, 0)) for index in range(50)]
    assert all(two in ("", one) for one, two in zip(plain, mixed, strict=True)) and plain != mixed
