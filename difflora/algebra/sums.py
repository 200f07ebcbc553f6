"""Exact weighted sums of kinds: what one module gets from several adapters, as kinds that one file can hold.

Low-rank pairs become one LoRA by concatenation. Another kind stays as it is, times its weight, as long as its
tensors in files do not have the names of those of another one; else it becomes a LoRA or a Full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from difflora.algebra.changes import Site, bias_of, dense_of
from difflora.errors import AdapterError
from difflora.kinds import Bias, Full, Kind, LoRA, Norm


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """A kind with its weight in a sum; `owner` numbers the adapter that it belongs to."""

    kind: Kind
    weight: float
    owner: int

    def exact(self) -> Kind | None:
        """The kind whose change is weight · ΔW; None where no kind is without the base weight."""
        return self.kind if self.weight == 1.0 else self.kind.times(self.weight)


def weighted_sum(parts: Sequence[Weighted], site: Site) -> tuple[Kind, ...]:
    """The kinds whose changes of weight and bias add up to Σ weight · change, exact but for rounding in
    float32.

    What comes from a single adapter keeps its form and its number format. Raises NeedsBase where a change
    must be computed from a weight that `site` does not have, AdapterError where the parts are of different
    layers.
    """
    if len({part.owner for part in parts}) == 1:
        own = [part.exact() for part in parts]
        if None not in own:
            return tuple(kind for kind in own if kind is not None)
    total = _Sum()
    for part in parts:
        total.add(part, site)
    return total.kinds(site)


@dataclass(eq=False)
class _Sum:
    pairs: list[LoRA] = field(default_factory=list)
    kept: list[Kind] = field(default_factory=list)
    leaves: dict[str, Tensor] = field(default_factory=dict)
    diff: Tensor | None = None
    bias: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None

    def add(self, part: Weighted, site: Site) -> None:
        kind = part.exact()
        if isinstance(kind, LoRA):
            self.pairs.append(kind)
        elif isinstance(kind, Norm):
            self.norm_weight = plus(self.norm_weight, kind.weight)
            self.norm_bias = plus(self.norm_bias, kind.bias)
        elif isinstance(kind, Full | Bias):
            self.diff = plus(self.diff, kind.diff if isinstance(kind, Full) else None)
            self.bias = plus(self.bias, kind.bias)
        elif kind is not None and self._has_room(kind.to_leaves()):
            self.kept.append(kind)
            self.leaves |= kind.to_leaves()
        else:
            self._lower(part, site)

    def _has_room(self, leaves: Mapping[str, Tensor]) -> bool:
        """Whether a file can hold these tensors beside those kept, and beside a LoRA.

        alpha is one for all of a module, and dora_scale is taken for that of any factors beside it.
        """
        if "dora_scale" in leaves or float(leaves.get("alpha", 1.0)) == 0.0:
            return False
        both = leaves.keys() & self.leaves.keys()
        return not both or (both == {"alpha"} and torch.equal(leaves["alpha"], self.leaves["alpha"]))

    def _lower(self, part: Weighted, site: Site) -> None:
        """Adds a kind as a low-rank pair where it has one that is smaller than ΔW, else as ΔW."""
        factors = part.kind.factors()
        if factors is not None:
            self.pairs.append(LoRA(factors.down, factors.up, factors.scale * part.weight))
        else:
            delta = dense_of([part.kind], site)
            if site.weight is not None:
                delta = delta.reshape(site.weight.shape)
            self.diff = plus(self.diff, delta * part.weight)
        shift = bias_of([part.kind], site)
        self.bias = plus(self.bias, None if shift is None else shift * part.weight)

    def kinds(self, site: Site) -> tuple[Kind, ...]:
        """What was added, as few kinds as it takes."""
        found: list[Kind] = []
        if self.pairs:
            alpha = self.leaves.get("alpha")
            found.append(concatenated(self.pairs, alpha=None if alpha is None else float(alpha)))
        found += self.kept
        if self.diff is not None:
            found.append(Full(self.diff, self.bias))
        elif self.bias is not None:
            found.append(Bias(self.bias))
        if self.norm_weight is not None or self.norm_bias is not None:
            found.append(Norm(self.norm_weight, self.norm_bias))
        return tuple(found)


def plus(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    """The sum in float32 of what there is. Raises AdapterError if one has other numbers than the other."""
    if term is None or total is None:
        return total if term is None else term.float()
    if total.numel() != term.numel() or total.shape[0] != term.shape[0]:
        raise AdapterError(
            f"changes of {tuple(total.shape)} and {tuple(term.shape)} cannot be added: they are of different "
            "layers"
        )
    return total + term.reshape(total.shape)


def concatenated(pairs: Sequence[LoRA], *, alpha: float | None = None) -> LoRA:
    """One LoRA of rank Σ rank: Σ scale · up · down, exactly.

    Its scale is the largest of theirs, or what `alpha` over the rank gives; what remains of the others is
    multiplied into their up. In half precision that would round, so there it becomes gains, and the number
    formats stay.
    Raises AdapterError if the pairs are of different layers.
    """
    if len(pairs) == 1 and alpha is None:
        return pairs[0]
    _require_alike(pairs)
    # Factors have gains in up, which is not asked for here.
    downs = [pair.down if pair.mid is None else pair.factors().down for pair in pairs]
    rank = sum(down.shape[0] for down in downs)
    scale = max(abs(pair.scale) for pair in pairs) if alpha is None else alpha / rank
    ratios = [pair.scale / scale if scale else 0.0 for pair in pairs]
    bias = None
    for pair, ratio in zip(pairs, ratios, strict=True):
        bias = plus(bias, None if pair.bias is None else pair.bias.float() * ratio)
    down, up = _stack_downs(downs), _stack_ups(pairs)
    gains: Tensor | None = torch.cat(
        [_gains(pair) * ratio for pair, ratio in zip(pairs, ratios, strict=True)]
    )
    if up.dtype.itemsize >= 4 or bool((gains.abs() == 1.0).all()):
        up, gains = up.mul_(gains.to(up.dtype)), None
    return LoRA(down, up.reshape(*up.shape, *[1] * (down.ndim - 2)), scale, bias=bias, gains=gains)


def _gains(pair: LoRA) -> Tensor:
    ones = torch.ones(pair.up.shape[1], device=pair.up.device)
    return ones if pair.gains is None else pair.gains.to(ones)


def _stack_downs(downs: Sequence[Tensor]) -> Tensor:
    """(Σ rank, ...) in the shape of the one that knows its kernel."""
    kernel = max((down.shape[1:] for down in downs), key=len)
    dtype = reduce(torch.promote_types, [down.dtype for down in downs])
    result = torch.empty(sum(down.shape[0] for down in downs), *kernel, dtype=dtype, device=downs[0].device)
    start = 0
    for down in downs:
        result[start : start + down.shape[0]].copy_(down.reshape(-1, *kernel))
        start += down.shape[0]
    return result


def _stack_ups(pairs: Sequence[LoRA]) -> Tensor:
    """(out, Σ rank)."""
    out, rank = pairs[0].up.shape[0], sum(pair.up.shape[1] for pair in pairs)
    dtype = reduce(torch.promote_types, [pair.up.dtype for pair in pairs])
    result = torch.empty(out, rank, dtype=dtype, device=pairs[0].up.device)
    start = 0
    for pair in pairs:
        result[:, start : start + pair.up.shape[1]].copy_(pair.up.flatten(1))
        start += pair.up.shape[1]
    return result


def _require_alike(pairs: Sequence[LoRA]) -> None:
    first = pairs[0]
    for pair in pairs[1:]:
        same_size = pair.extent[0] == first.extent[0]
        same_size &= torch.Size(pair.extent[1:]).numel() == torch.Size(first.extent[1:]).numel()
        if len(pair.extent) == len(first.extent):
            same_size &= pair.extent == first.extent
        if not same_size:
            raise AdapterError(
                f"changes of {first.extent} and {pair.extent} cannot be added: they are of different layers"
            )
