"""Patterns of PEFT configurations match what `re` matches, in time that grows with their length alone."""

import re
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflora.families import family
from difflora.formats.patterns import MAX_EXPRESSIONS, MAX_PATTERN, MAX_WORK, first_matches

# A bare dot is taken for a dot where all else is plain, as names in configurations are not escaped.
LETTERS = st.sampled_from(
    [*"ab1_", "a", "b", r"\.", "-", r"\w", r"\d", r"\W", "[ab]", "[^a]", "[a-b1.]", "[b_-]"]
)
PIECES = st.one_of(
    LETTERS,
    st.tuples(LETTERS, st.sampled_from("*+?")).map("".join),
    st.sampled_from(["(.)", ".*", ".+", ".?", "^", "$"]),
)
GROUPS = st.recursive(
    st.lists(PIECES, min_size=1, max_size=3).map("".join),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map("|".join).map(lambda text: f"({text})"),
    max_leaves=4,
)
PATTERNS = st.lists(GROUPS, min_size=1, max_size=3).map("".join)
NAMES = st.lists(st.text("aab1._-", min_size=1, max_size=6), min_size=3, max_size=12, unique=True)


def peft_matches(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


@settings(max_examples=150)
@given(patterns=st.lists(PATTERNS, min_size=1, max_size=3, unique=True), names=NAMES)
def test_the_first_pattern_that_peft_matches_counts(patterns: list[str], names: list[str]) -> None:
    found = first_matches("table", patterns, names)
    expected = {
        name: next(order for order, pattern in enumerate(patterns) if peft_matches(pattern, name))
        for name in names
        if any(peft_matches(pattern, name) for pattern in patterns)
    }
    assert found == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "to_q",
        "^down_blocks.*attn1.to_(q|k)$",
        r"down_blocks\.[0-2]\..*\.(to_q|to_k|to_v|to_out\.0)",
        ".*mid_block.*|.*up_blocks.[12].*attn2.*",
        r"(?:up|down)_blocks\.\d+\.attentions\.\d\.proj_in",
    ],
)
def test_patterns_that_people_write(pattern: str) -> None:
    names = sorted(path.removeprefix("unet.") for path in family("sdxl").paths)
    expected = [name for name in names if peft_matches(pattern, name)]
    assert expected and sorted(first_matches("table", [pattern], names)) == expected


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(a+)+$", "too involved"),
        ("(a)*b", "too involved"),
        ("a{2}|b", "too involved"),
        (r"(a)\1", "too involved"),
        ("(?=a)b", "too involved"),
        ("a*?b", "too involved"),
        ("[[a]|b", "too involved"),
        ("a|b" * MAX_PATTERN, "too involved"),
        ("(", "no regular expression"),
        ("a)", "no regular expression"),
        ("[b-a]", "no regular expression"),
    ],
)
def test_what_is_not_matched_is_refused(pattern: str, reason: str) -> None:
    with warnings.catch_warnings(action="error"), pytest.raises(ValueError, match=f"table .*{reason}"):
        first_matches("table", [pattern], ["a"])


@pytest.mark.parametrize(
    "part",
    [
        ".*[a-z0-9_.]",
        "(.|.)",
        "[a-z_.0-9]*",
        ".?",
        r"\w+.*",
        "(.*|x.*)",
        "(.*)",
        "(a|)",
        "((.))",
        "[^z]",
        "[a-y]",
    ],
)
def test_no_patterns_take_long(part: str) -> None:
    """As many as there may be, and as long, for as many names as the largest model has."""
    names = sorted(path for path in family("sdxl").paths)
    body = part * ((MAX_PATTERN - 30) // len(part))
    count = min(MAX_EXPRESSIONS, int(MAX_WORK / sum(map(len, names)) / MAX_PATTERN))
    start = time.process_time()
    found = first_matches("table", [f"{body}{'z' * n}Z" for n in range(count)], names)
    assert not found and count > 5
    assert time.process_time() - start < 0.5


def test_names_without_end_are_refused() -> None:
    names = [f"{number:05d}." + "a." * 120 for number in range(20_000)]
    start = time.process_time()
    with pytest.raises(ValueError, match="table has 0 letters of expressions for 20000 names: too many"):
        first_matches("table", ["to_q"], names)
    assert time.process_time() - start < 0.5
