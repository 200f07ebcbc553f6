"""What LyCORIS's extraction once stored beside a LoRA: the rest of the difference, whole or sparse.

bias                                   in the shape of the weight
bias_indices bias_values bias_size     the same, of which only some entries are not zero
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.formats.format import DOWN, UP
from difflora.kinds import ScaleOf

WHOLE = "bias"
SPARSE = ("bias_indices", "bias_values", "bias_size")


def as_difference(leaves: Mapping[str, Tensor], scale: ScaleOf) -> dict[str, Tensor]:
    """The leaves of a module with such a remainder as a full difference, in float32.

    It is added to the product of the factors before the scale, as in A1111: so it is scaled here.
    Raises AdapterError if it belongs to no LoRA or contradicts its shape.
    """
    stored = sorted(leaves.keys() & {WHOLE, *SPARSE})
    found = {leaf: tensor for leaf, tensor in leaves.items() if leaf not in stored}
    if not stored:
        return found
    if not {DOWN, UP} <= found.keys() or "diff" in found:
        raise AdapterError(f"{', '.join(stored)}: expected beside the factors of a LoRA, and nothing else")
    down, up = found[DOWN], found[UP]
    shape = (up.shape[0], *down.shape[1:])
    if stored == [WHOLE]:
        rest = leaves[WHOLE]
        if rest.numel() != math.prod(shape):
            raise AdapterError(f"bias is {tuple(rest.shape)}; expected the shape of the weight, {shape}")
    elif stored == sorted(SPARSE):
        indices, values, size = (leaves[name] for name in SPARSE)
        rest = _dense(indices, values, size, math.prod(shape))
    else:
        raise AdapterError(f"only {', '.join(stored)} of its remainder is there")
    found["diff"] = (rest.reshape(shape).float() * scale(down.shape[0])).contiguous()
    return found


def _dense(indices: Tensor, values: Tensor, size: Tensor, count: int) -> Tensor:
    """The sparse tensor written out, flat. Raises AdapterError if its entries do not lie in it."""
    expected = (size.numel(), values.numel())
    if size.ndim != 1 or tuple(indices.shape) != expected or indices.is_floating_point():
        raise AdapterError(
            f"bias_indices is {indices.dtype} {tuple(indices.shape)}; expected whole numbers {expected}"
        )
    if indices.is_meta or size.is_meta:
        return torch.empty(count, device="meta")
    extent = [int(length) for length in size]
    limits = size.long()[:, None]
    places = indices.long()
    if min(extent) < 1 or math.prod(extent) != count or bool(((places < 0) | (places >= limits)).any()):
        raise AdapterError(f"bias_size is {extent}; expected {count} entries, and every index inside")
    return torch.zeros(extent).index_put(tuple(places), values.float().flatten(), accumulate=True).flatten()
