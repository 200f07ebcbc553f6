"""What the kinds have in common: reading leaves, checking a weight, small products."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from difflora.errors import AdapterError, NeedsBase
from difflora.kinds.kind import Kind


def take(shapes: Mapping[str, tuple[int, ...]], own: frozenset[str], extra: frozenset[str]) -> frozenset[str]:
    """The leaves of `own` that are there, with those of `extra` if there are any."""
    found = own & shapes.keys()
    return found | (extra & shapes.keys()) if found else frozenset()


def need(leaves: Mapping[str, Tensor], *names: str) -> tuple[Tensor, ...]:
    """The named leaves in order. Raises AdapterError naming those that are missing."""
    if missing := [name for name in names if name not in leaves]:
        there = ", ".join(sorted(leaves)) or "nothing"
        raise AdapterError(f"{' and '.join(missing)} missing beside {there}")
    return tuple(leaves[name] for name in names)


def number(value: float) -> Tensor:
    """A 0-d float32 tensor."""
    return torch.tensor(value, dtype=torch.float32)


def read_number(name: str, leaf: Tensor) -> float:
    """The one number of a leaf; 0 on the meta device, where there is none.

    Raises AdapterError if it is not one finite number.
    """
    if leaf.numel() != 1:
        raise AdapterError(f"{name} has the shape {tuple(leaf.shape)}, expected one number")
    value = 0.0 if leaf.is_meta else float(leaf)
    if not math.isfinite(value):
        raise AdapterError(f"{name} is {value}, expected a finite number")
    return value


def accepted(kind: Kind, weight: Tensor) -> Tensor:
    """`weight`. Raises AdapterError if the kind does not fit its shape."""
    if reason := kind.problem(tuple(weight.shape)):
        raise AdapterError(reason)
    return weight


def pristine(kind: Kind, weight: Tensor | None) -> Tensor:
    """`weight` in float32, for a kind that is a function of it.

    Raises NeedsBase if there is none, AdapterError if the kind does not fit its shape.
    """
    if weight is None:
        raise NeedsBase(f"{kind.name}: its ΔW is a function of the base weight; give the base model")
    return accepted(kind, weight).float()


def fits(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a tensor of the shape `own` holds the numbers of a weight of `shape`.

    A linear layer and a 1×1 convolution are alike, and a kernel may be flattened: files in the wild hold
    both for the same layer.
    """
    if len(shape) == 1 or len(own) == 1:
        return own == shape
    same_rows = own[:1] == shape[:1]
    if len(own) == len(shape):
        return own == shape
    return same_rows and math.prod(own) == math.prod(shape)


def mix(mid: Tensor, down: Tensor) -> Tensor:
    """Σ_j mid[i, j] ⊗ down[j]: the factor (r, in, kh, kw) that stands for both."""
    return torch.einsum("ijhw,jc->ichw", mid, down)


def worth(rank: int, out: int, rest: int) -> bool:
    """Whether factors of `rank` are smaller than the (out, rest) matrix that they stand for."""
    return rank * (out + rest) < out * rest
