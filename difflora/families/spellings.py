"""The names that original checkpoints have for the modules of a component, and how rows correspond.

Most originals rename a module and nothing else. Some hold the rows of several modules in one (fused), and
some hold the halves of a module in the other order (swapped). One form says all three: the rows of an
original module are a row of slices, each a run of rows of one of ours; the slices of one of our modules, in
the order in which they stand, are its rows.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from difflora.families.sgm import sgm_names

Naming = Literal["sgm", "clip", "open_clip", "t5", "bfl", "mmdit"]


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows from `start` to `stop` of a module, as a file names it; both counted in parts of which the
    module has `of`.

    Counted in parts, since models of one family differ in width: the key projection is rows 1/3 to 2/3 of
    every qkv.
    """

    path: str
    start: int = 0
    stop: int = 1
    of: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether it is all the rows there are."""
        return (self.start, self.stop) == (0, self.of)


Slices = tuple[Slice, ...]
"""What the rows of one module of a file are, in their order in the file."""


def thirds(*paths: str) -> Slices:
    """Three modules of equal height above each other."""
    return tuple(Slice(path, part, part + 1, 3) for part, path in enumerate(paths))


def swapped(path: str) -> Slices:
    """One module whose halves the file holds in the other order: ours begins with the file's second half."""
    return (Slice(path, 1, 2, 2), Slice(path, 0, 1, 2))


_OPEN_CLIP = (
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding", "positional_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("self_attn.", "attn."),
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)
_OPEN_CLIP_Q = re.compile(r"(.+\.attn)\.q_proj")


def _sgm(names: Iterable[str]) -> dict[str, Slices]:
    return {original: (Slice(name),) for name, original in sgm_names(names).items()}


def _same(names: Iterable[str]) -> dict[str, Slices]:
    return {name: (Slice(name),) for name in names}


def _open_clip(names: Iterable[str]) -> dict[str, Slices]:
    """With and without `model.` before them; q, k and v alone, as A1111 spells them, and in one."""
    found: dict[str, Slices] = {}
    for name in names:
        original = name
        for ours, theirs in _OPEN_CLIP:
            original = original.replace(ours, theirs)
        found[original] = (Slice(name),)
        if match := _OPEN_CLIP_Q.fullmatch(original):
            parts = thirds(*(name.replace("q_proj", f"{letter}_proj") for letter in "qkv"))
            found[match[1]] = found[f"{match[1]}.in_proj"] = parts
    return found | {f"model.{name}": slices for name, slices in found.items()}


NAMINGS: Mapping[Naming, Callable[[Iterable[str]], Mapping[str, Slices]]] = {
    "sgm": _sgm,
    "clip": _same,
    "open_clip": _open_clip,
    "t5": _same,
}
"""Naming -> a function from the names of all modules of a component to what each original name holds."""
