"""The words that adapters add to a prompt's vocabulary: found in its text, and held against a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from difflora.families.model import Model


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a text: one of the words, as the vocabulary spells it, or (`word` is None) plain text."""

    text: str
    word: str | None = None


def embedding_path(component: str) -> str:
    """The path of the layer of a text encoder that gives each token its vector."""
    return f"{component}.text_model.embeddings.token_embedding"


def pieces(text: str, words: Collection[str]) -> Iterator[Piece]:
    """`text` cut into the words it contains and what lies between them, in order.

    Upper and lower case are alike, as they are to CLIP, and one space stands for any number. Of words that
    begin at the same letter the longest is taken. A word that begins or ends with a letter, a digit or "_"
    does not begin or end inside a longer run of these: `cat` is not in `concatenate`, nor in `cat_2`.
    """
    ordered = sorted(words, key=lambda word: (-len(word), word))
    if not ordered:
        yield Piece(text)
        return
    end = 0
    for match in re.finditer("|".join(map(_pattern, ordered)), text, re.IGNORECASE):
        if match.start() > end:
            yield Piece(text[end : match.start()])
        assert match.lastindex is not None, "every alternative is one group"
        yield Piece(match.group(), ordered[match.lastindex - 1])
        end = match.end()
    if end < len(text):
        yield Piece(text[end:])


def word_problem(vectors: Mapping[str, Tensor], model: Model) -> str | None:
    """Why a word (text encoder -> vectors) cannot be used with `model`; None if it can.

    Every text encoder of the model must have vectors of its own width, no more than fit into one chunk.
    """
    encoders = [part.name for part in model.family.components if part.is_text]
    if set(vectors) != set(encoders):
        return f"has vectors for {_list(vectors)}, expected them for {_list(encoders)}"
    for name in encoders:
        (count, width), expected = vectors[name].shape, model.shapes()[embedding_path(name)][1]
        if width != expected:
            return f"has vectors of {width} numbers for {name}, expected {expected}"
        if count > (room := chunk_room(model, name)):
            return f"has {count} vectors for {name}, which has room for {room} in a chunk"
    return None


def chunk_room(model: Model, component: str) -> int:
    """How many tokens a chunk of text has for words: all places but its begin and its end."""
    return getattr(model.pipeline, component.replace("text_encoder", "tokenizer")).model_max_length - 2


def _pattern(word: str) -> str:
    inner = r"\s+".join(re.escape(part) for part in word.split())
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.match(r"\w", word[-1]) else ""
    return f"{before}({inner}){after}"


def _list(names: Collection[str]) -> str:
    return " and ".join(sorted(names))
