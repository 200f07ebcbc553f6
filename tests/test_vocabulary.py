"""Words in a prompt: where they begin and end, and which of several is meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difflora.vocabulary import Piece, pieces

CASES = {
    "alone": ("cat", ["cat"], ["<cat>"]),
    "among others": ("a cat, black", ["cat"], ["a ", "<cat>", ", black"]),
    "twice": ("cat cat", ["cat"], ["<cat>", " ", "<cat>"]),
    "inside another word": ("concatenate cats cat_2 2cat", ["cat"], ["concatenate cats cat_2 2cat"]),
    "beside signs": ("cat's (cat) cat-like", ["cat"], ["<cat>", "'s (", "<cat>", ") ", "<cat>", "-like"]),
    "upper case": ("A CAT", ["cat"], ["A ", "<cat>"]),
    "the longest": ("cat cat-2 cat-22", ["cat", "cat-2"], ["<cat>", " ", "<cat-2>", " ", "<cat>", "-22"]),
    "several parts": ("my  old\ncat", ["my old cat", "old"], ["<my old cat>"]),
    "in angle brackets": ("a<cat>b <cat >", ["<cat>"], ["a", "<<cat>>", "b <cat >"]),
    "signs of patterns": ("a.b axb (a.b*)", ["a.b", "a.b*"], ["<a.b>", " axb (", "<a.b*>", ")"]),
    "no words": ("a cat", [], ["a cat"]),
    "no text": ("", ["cat"], []),
    "letters of other scripts": ("größe größer", ["größe"], ["<größe>", " größer"]),
}


@pytest.mark.parametrize(("text", "words", "expected"), CASES.values(), ids=CASES.keys())
def test_words_are_found(text: str, words: list[str], expected: list[str]) -> None:
    found = [piece.text if piece.word is None else f"<{piece.word}>" for piece in pieces(text, words)]
    assert found == expected


@given(
    text=st.text("ab _-<>é,", max_size=30),
    words=st.sets(st.text("ab-<>é", min_size=1, max_size=4), max_size=5),
)
def test_nothing_is_lost_whatever_the_words(text: str, words: set[str]) -> None:
    found = list(pieces(text, words))
    assert "".join(piece.text for piece in found) == text
    assert all(piece.word in words for piece in found if piece.word is not None)
    assert Piece("", None) not in found or not words


def test_a_prompt_of_any_length_takes_little_time() -> None:
    words = [f"word-{number}" for number in range(200)]
    assert sum(piece.word is not None for piece in pieces("word-7 wor " * 5000, words)) == 5000
