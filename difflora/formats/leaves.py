"""From the leaves of one module to its kind, and back."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from difflora.adapter import Adapter
from difflora.errors import AdapterError, AdapterFileError, listing
from difflora.formats.format import ALPHA, DOWN, UP
from difflora.kinds import LoRA

FACTOR_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_ALPHA = 1e8

_FOREIGN: Mapping[str, tuple[str, ...]] = {
    "LoCon in Tucker form": ("lora_mid.weight",),
    "DoRA": ("dora_scale", "magnitude"),
    "LoRA with a bias": ("lora_up.bias", "bias", "bias_indices", "bias_values", "bias_size"),
    "LoRA with a scale instead of alpha": ("scale",),
    "LoRA on an embedding": ("lora_embedding_A", "lora_embedding_B"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "GLoRA": ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"),
    "IA3": ("weight", "on_input"),
    "a full difference": ("diff", "diff_b"),
    "a norm difference": ("w_norm", "b_norm"),
    "a replaced weight": ("set_weight", "reshape_weight"),
    "OFT": ("oft_blocks", "oft_diag", "rescale", "oft_R.weight"),
    "T-LoRA": ("q_layer.weight", "p_layer.weight", "lambda_layer", "base_q", "base_p", "base_lambda"),
}

FOREIGN: Mapping[str, str] = {leaf: kind for kind, leaves in _FOREIGN.items() for leaf in leaves}
"""Leaf -> the kind, not read yet, that it gives away."""

LEAVES = frozenset({DOWN, UP, ALPHA, *FOREIGN})


def build(leaves: Mapping[str, Tensor], scale: Callable[[int], float]) -> LoRA:
    """The kind that these leaves of one module make; `scale` of its rank is its scale if there is no alpha.

    A factor of 2 dimensions beside one of 4 becomes a 1×1 convolution: some trainers store the up factor of
    convolutions flat. The values of tensors on the meta device are not looked at.

    Raises AdapterError if a leaf is missing or they contradict each other.
    """
    if missing := [leaf for leaf in (DOWN, UP) if leaf not in leaves]:
        raise AdapterError(f"has {' and '.join(sorted(leaves))}, but no {' and no '.join(missing)}")
    down, up = leaves[DOWN], leaves[UP]
    for leaf, factor in ((DOWN, down), (UP, up)):
        if factor.dtype not in FACTOR_DTYPES:
            raise AdapterError(f"{leaf} is {_short(factor.dtype)}, expected float32, float16 or bfloat16")
    if down.ndim == 4 and up.ndim == 2:
        up = up[:, :, None, None]
    elif down.ndim == 2 and up.ndim == 4:
        down = down[:, :, None, None]
    module = LoRA(down, up, scale=1.0)
    if ALPHA not in leaves:
        return replace(module, scale=scale(module.rank))
    return replace(module, scale=_alpha(leaves[ALPHA]) / module.rank)


def _alpha(alpha: Tensor) -> float:
    if alpha.ndim > 1 or alpha.numel() != 1:
        raise AdapterError(f"alpha has the shape {tuple(alpha.shape)}, expected one number")
    if alpha.is_meta:
        return 1.0
    value = float(alpha)
    if not (math.isfinite(value) and abs(value) <= MAX_ALPHA):
        raise AdapterError(f"alpha is {value}, expected a number up to {MAX_ALPHA:g}")
    return value


def writable(adapter: Adapter, title: str) -> dict[str, LoRA]:
    """The one LoRA of each path of `adapter`, sorted by path.

    Raises AdapterFileError naming everything that a file in the format `title` cannot hold.
    """
    problems = [f"the word {word!r}: embeddings cannot be written" for word in sorted(adapter.tokens)]
    modules: dict[str, LoRA] = {}
    for path, kinds in sorted(adapter.modules.items()):
        if len(kinds) == 1 and isinstance(kinds[0], LoRA):
            modules[path] = kinds[0]
        else:
            names = ", ".join(kind.name for kind in kinds) or "nothing"
            problems.append(f"{path}: holds {names}, expected one lora")
    if not modules and not problems:
        problems.append("it changes no module")
    if problems:
        raise AdapterFileError(
            f"adapter {adapter.meta.name!r} cannot be written as a {title} (problems: {len(problems)}).\n"
            f"{listing(problems)}\nMerge or extract it to plain LoRA first."
        )
    return modules


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
