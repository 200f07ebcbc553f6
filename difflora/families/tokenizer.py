"""CLIP's tokenizer from the vocabulary in the package, without a network."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from difflora.families.family import ASSETS

_END = "<|endoftext|>"


def clip_tokenizer(pad_token: str) -> Any:
    """A transformers CLIPTokenizer of 49,408 tokens and 77 places.

    SD 1.x and CLIP-L pad with the end token, OpenCLIP with "!", which is token 0.
    """
    from transformers import CLIPTokenizer

    merges: list[Any] = list(_merges())  # pairs, which is what it takes, annotated or not
    return CLIPTokenizer(vocab=_vocabulary(merges), merges=merges, pad_token=pad_token, model_max_length=77)


@lru_cache(maxsize=1)
def _merges() -> tuple[tuple[str, str], ...]:
    lines = (ASSETS / "clip_bpe" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    pairs = (line.split(" ") for line in lines)
    return tuple((left, right) for left, right in pairs)


def _vocabulary(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Ids in CLIP's order: the 256 bytes, the same at the end of a word, every merge, and the two marks."""
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges)]
    return {word: index for index, word in enumerate([*words, "<|startoftext|>", _END])}


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in GPT-2's byte-level BPE, printable bytes first."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [chr(code) for code in printable] + [chr(256 + index) for index in range(256 - len(printable))]
