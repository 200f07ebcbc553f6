"""From the leaves of one module to the kinds that change it, and back."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.formats.format import ALPHA, DOWN, UP
from difflora.formats.remainders import SPARSE, as_difference
from difflora.kinds import KINDS, Kind, ScaleOf

FACTOR_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_ALPHA = 1e8
"""How large an alpha or a scale may be, in a tensor or in a configuration, read or written."""
DORA, MAGNITUDE = "dora_scale", "magnitude"
UP_BIAS = "lora_up.bias"

LEAVES = frozenset(
    {DOWN, UP, "lora_mid.weight", ALPHA, DORA, MAGNITUDE, UP_BIAS, "scale", "bias"}
    | {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"}
    | {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}
    | {"a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight", "weight", "on_input"}
    | {"diff", "diff_b", "w_norm", "b_norm", "set_weight", "set_bias"}
    | {"oft_blocks", "oft_diag", "rescale", *SPARSE}
)
"""Every leaf that some kind is made of, in the spelling of kohya and LyCORIS."""

_T_LORA = "is part of a T-LoRA, whose rank changes with the timestep, so that it is no one change of a weight"
_OFT_PART = (
    "is one part of a module in kohya's OFT for Flux, where each part has rotations and a limit of its own; "
    "what is read is OFT of one oft_blocks a module, as LyCORIS trains it"
)
_EMBEDDING = "is LoRA on an embedding, which takes rows by number where a layer multiplies"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("q_layer.weight", "p_layer.weight", "lambda_layer"), _T_LORA),
    **dict.fromkeys(("base_q", "base_p", "base_lambda"), _T_LORA),
    **dict.fromkeys(("lora_embedding_A", "lora_embedding_B"), _EMBEDDING),
    **dict.fromkeys((f"oft_blocks.{part}" for part in range(4)), _OFT_PART),  # q, k, v and feed-forward
    "reshape_weight": "enlarges a layer of the base, as control models do: it would be another base",
    "oft_R.weight": "is PEFT's form of OFT, which is not the one of kohya and LyCORIS",
    "ia3_l": "is PEFT's form of IA3, which scales biases as well",
}
"""Leaves of which it is known what they are, and the reason why no kind is made of them."""

_OF_ANY_DTYPE = frozenset({ALPHA, "scale", "on_input", "bias_indices", "bias_size", *REFUSED})


def kinds_of(leaves: Mapping[str, Tensor], scale: ScaleOf) -> tuple[Kind, ...]:
    """The kinds that the leaves of one module make, in the order of KINDS; every leaf belongs to one.

    `scale` is that of a module without alpha. Values of tensors on the meta device are not looked at.
    Raises AdapterError, saying all that is wrong, if a leaf is missing, contradicts another, is of no kind
    that there is, or has a dtype that no factor has.
    """
    refused = {REFUSED[leaf]: leaf for leaf in sorted(leaves, reverse=True) if leaf in REFUSED}
    problems = [f"{leaf} {reason}" for reason, leaf in refused.items()]
    problems += [
        f"{leaf} is {_short(tensor.dtype)}, expected float32, float16 or bfloat16"
        for leaf, tensor in sorted(leaves.items())
        if leaf not in _OF_ANY_DTYPE and tensor.dtype not in FACTOR_DTYPES
    ]
    if problems:
        raise AdapterError("; ".join(problems))
    left = canonical(leaves)
    scale = _scale(left, scale)
    left = as_difference(left, scale)
    kinds: list[Kind] = []
    has_alpha = False  # it is the module's, so that every kind of the module that knows one has it
    shapes = {leaf: tuple(tensor.shape) for leaf, tensor in left.items()}
    for member in KINDS:
        if not shapes.keys() - {ALPHA}:  # no kind is made of alpha alone
            break
        mine = member.claim(shapes)
        if not mine:
            continue
        claimed = {leaf: left[leaf] for leaf in sorted(mine)}
        left = {leaf: tensor for leaf, tensor in left.items() if leaf not in mine - {ALPHA}}
        shapes = {leaf: shapes[leaf] for leaf in left}
        has_alpha |= ALPHA in mine
        try:
            kinds.append(member.from_leaves(claimed, scale))
        except AdapterError as error:
            problems.append(str(error))
    left = {leaf: tensor for leaf, tensor in left.items() if leaf != ALPHA or not has_alpha}
    if left:
        problems.append(f"{', '.join(sorted(left))}: no kind of change has this and nothing else")
    if problems:
        raise AdapterError("; ".join(problems))
    return tuple(kinds)


def canonical(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The leaves as LyCORIS has them: the norms of output rows of PEFT and ai-toolkit as a dora_scale.

    Raises AdapterError if it is one number for many rows, which would be taken for the norm of a column.
    """
    found = dict(leaves)
    leaf = MAGNITUDE if MAGNITUDE in found and DORA not in found else DORA
    if leaf not in found or (leaf == DORA and found[leaf].ndim > 1):
        return found
    norms = found.pop(leaf)
    is_of_one_row = UP in found and tuple(found[UP].shape[:1]) == (1,)
    if norms.ndim == 0 or (norms.numel() == 1 and not is_of_one_row):
        raise AdapterError(f"{leaf} is {tuple(norms.shape)}; expected the norm of every output row, (out,)")
    is_convolution = any(found[name].ndim == 4 for name in (DOWN, UP) if name in found)
    found[DORA] = norms.reshape(-1, *(1,) * (3 if is_convolution else 1))
    return found


def leaves_of(kinds: Sequence[Kind]) -> dict[str, Tensor]:
    """The leaves of a module that these kinds change: the inverse of `kinds_of`.

    Raises AdapterError if there are none, no file can hold them beside each other, or an alpha is larger
    than a reader takes.
    """
    names = ", ".join(kind.name for kind in kinds)
    found: dict[str, Tensor] = {}
    for kind in kinds:
        for leaf, tensor in _in_file(kind).items():
            if leaf == ALPHA and "scale" in kind.tensors():  # otherwise alpha is no scale, as in OFT
                _number(ALPHA, tensor)
            if leaf in found and not (leaf == ALPHA and torch.equal(found[leaf], tensor)):
                raise AdapterError(f"holds {names}: two have {leaf}, and a file has one a module")
            found[leaf] = tensor
    if not found:
        raise AdapterError("holds nothing")
    if len(kinds) > 1 and _read_back(found) != _told_apart((kind.name for kind in kinds), found):
        raise AdapterError(f"holds {names}, which could not be told apart in a file")
    return found


def _in_file(kind: Kind) -> dict[str, Tensor]:
    """The leaves of a kind; the bias of a LoRA as a difference of the layer's, in float32.

    ComfyUI drops PEFT's bias of the up factor without a word, and reads a difference beside any kind.
    """
    leaves = dict(kind.to_leaves())
    if UP_BIAS in leaves and (bias := kind.bias_delta()) is not None:
        del leaves[UP_BIAS]
        leaves["diff_b"] = bias
    return leaves


def rank_of(leaves: Mapping[str, Tensor]) -> int | None:
    """The number by which a file states the size of a low-rank kind; None for the others."""
    return rank_in({leaf: tuple(tensor.shape) for leaf, tensor in leaves.items()})


def rank_in(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """`rank_of` for the shapes of leaves; None as well for those that have no first dimension."""
    return next((shapes[leaf][0] for leaf in _RANK_LEAVES if shapes.get(leaf)), None)


def width_of(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The number of input features of a linear layer, from its leaves; None if they do not tell."""
    for leaf in (DOWN, "hada_w1_b", "a2.weight", "diff", "set_weight"):
        if leaf in shapes and len(shapes[leaf]) > 1:
            return shapes[leaf][1]
    left = shapes.get("lokr_w1") or shapes.get("lokr_w1_b")
    right = shapes.get("lokr_w2") or shapes.get("lokr_w2_b")
    if left and right and len(left) > 1 and len(right) > 1:
        return left[1] * right[1]
    return None


_RANK_LEAVES = (DOWN, "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "b2.weight", "oft_blocks")


def _scale(leaves: dict[str, Tensor], configured: ScaleOf) -> ScaleOf:
    """How strongly the low-rank kinds of a module act; takes `scale` out of the leaves, which no kind has.

    A stored scale, of A1111, counts for more than alpha.
    """
    for leaf in (ALPHA, "scale"):
        if leaf in leaves and leaves[leaf].numel() != 1:
            raise AdapterError(f"{leaf} has the shape {tuple(leaves[leaf].shape)}, expected one number")
    if "scale" in leaves:
        stated = leaves.pop("scale")
        leaves.pop(ALPHA, None)
        return lambda rank: _number("scale", stated)
    if ALPHA not in leaves:
        return configured
    alpha = leaves[ALPHA] = leaves[ALPHA].reshape(())
    return lambda rank: _number(ALPHA, alpha) / rank


def _number(leaf: str, tensor: Tensor) -> float:
    if tensor.is_meta:
        return 1.0
    return bounded(leaf, float(tensor))


def bounded(name: str, value: float) -> float:
    """The value of an alpha or a scale. Raises AdapterError if it is not finite or above MAX_ALPHA."""
    if not (math.isfinite(value) and abs(value) <= MAX_ALPHA):
        raise AdapterError(f"{name} is {value}, expected a number up to {MAX_ALPHA:g}")
    return value


def _read_back(leaves: Mapping[str, Tensor]) -> list[str]:
    """The names of the kinds that a reader of these leaves finds."""
    left = {leaf: tuple(tensor.shape) for leaf, tensor in leaves.items()}
    names = []
    for member in KINDS:
        if mine := member.claim(left):
            names.append(member.name)
            left = {leaf: shape for leaf, shape in left.items() if leaf not in mine - {ALPHA}}
    return sorted(names)


def _told_apart(names: Iterable[str], leaves: Mapping[str, Tensor]) -> list[str]:
    """The names that a reader finds for these kinds: a difference of the bias is one of its own, or part of a
    full difference."""
    found = [name for name in names if name != "bias"]
    return sorted(found + ["bias"] * ("diff_b" in leaves and "full" not in found))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
