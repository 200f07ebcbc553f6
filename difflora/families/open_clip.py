"""Module names of OpenCLIP text encoders, from those of transformers' CLIPTextModel."""

import re
from collections.abc import Iterable

from difflora.families.spellings import Slices, thirds, whole

_RENAMES = (
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding", "positional_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("self_attn.", "attn."),
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)
_Q = re.compile(r"(.+\.attn)\.q_proj")


def open_clip_names(names: Iterable[str]) -> dict[str, Slices]:
    """OpenCLIP's name of every module in `names`, with and without `model.` before it.

    q, k and v are there in one, as OpenCLIP has them, and each alone, as A1111 spells them.
    """
    found: dict[str, Slices] = {}
    for name in names:
        original = name
        for ours, theirs in _RENAMES:
            original = original.replace(ours, theirs)
        found[original] = whole(name)
        if match := _Q.fullmatch(original):
            parts = thirds(*(name.replace("q_proj", f"{letter}_proj") for letter in "qkv"))
            found[match[1]] = found[f"{match[1]}.in_proj"] = parts
    return found | {f"model.{name}": slices for name, slices in found.items()}
