"""Exact weighted sums of kinds: what one module gets from several adapters, in kinds that any program reads.

Of two kinds that change one weight ComfyUI takes the last, LyCORIS the first, and diffusers neither: so a sum
is one kind. Low-rank pairs become one LoRA by concatenation; a kind without factors makes it a Full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import prod

import torch
from torch import Tensor

from difflora.algebra.changes import Site, bias_of, dense_of, shape_at
from difflora.errors import AdapterError, NeedsBase
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


def multiples(parts: Sequence[Weighted]) -> tuple[Kind, ...] | None:
    """Every kind times its weight, in its own form and number format; None if one has no exact multiple."""
    own = [kind for part in parts if (kind := part.exact()) is not None]
    return tuple(own) if len(own) == len(parts) else None


def weighted_sum(parts: Sequence[Weighted], site: Site) -> tuple[Kind, ...]:
    """The kinds whose changes of weight and bias add up to Σ weight · change, exact but for rounding in
    float32: at most one that changes the weight, and a Bias.

    A change of the weight that is the only one keeps its form. Raises NeedsBase where a change must be
    computed from a weight that `site` does not have, AdapterError where the parts are of different layers.
    """
    matrices = [part for part in parts if not isinstance(part.kind, Bias)]
    own = multiples(parts) if len(matrices) <= 1 else None
    if own is not None and len({part.owner for part in parts}) == 1:
        return own
    total = _Sum()
    for part in parts:
        if matrices == [part] and _stays(part):
            total.kept = part.exact()
        else:
            total.add(part, site)
    return total.kinds([part.kind for part in matrices], site)


def _stays(part: Weighted) -> bool:
    """Whether a kind, beside biases alone, is kept: it has an exact multiple, and changes no bias itself.

    LoRA, Full and Norm are what sums are made of.
    """
    if part.exact() is None or isinstance(part.kind, LoRA | Full | Norm):
        return False
    try:
        return part.kind.bias_delta(None) is None
    except NeedsBase:
        return False


@dataclass(eq=False)
class _Sum:
    kept: Kind | None = None
    pairs: list[LoRA] = field(default_factory=list)
    diff: Tensor | None = None
    bias: Tensor | None = None
    norms: list[Norm] = field(default_factory=list)

    def add(self, part: Weighted, site: Site) -> None:
        kind = part.exact()
        if isinstance(kind, LoRA):
            self.pairs.append(kind)
        elif isinstance(kind, Norm):
            self.norms.append(kind)
        elif isinstance(kind, Full | Bias):
            self.diff = plus(self.diff, kind.diff if isinstance(kind, Full) else None)
            self.bias = plus(self.bias, kind.bias)
        else:
            self._lower(part, site)

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

    def kinds(self, changing: Sequence[Kind], site: Site) -> tuple[Kind, ...]:
        """What was added, of kinds `changing` the weight, as few kinds as it takes."""
        if self.norms or self.diff is not None:
            return (self._whole(changing, site),)
        found = [] if self.kept is None else [self.kept]
        if self.pairs:
            lora = concatenated(self.pairs)
            found.append(_shaped(lora, shape_at(changing, _flat(lora), site)))
        if self.bias is not None:
            found.append(Bias(self.bias))
        return tuple(found)

    def _whole(self, changing: Sequence[Kind], site: Site) -> Kind:
        """The sum as one tensor for the weight, and one for the bias."""
        weight, bias = self.diff, self.bias
        for norm in self.norms:
            weight, bias = plus(weight, norm.weight), plus(bias, norm.bias)
        if self.pairs:
            lora = concatenated(self.pairs)
            weight, bias = plus(weight, lora.delta()), plus(bias, lora.bias_delta())
        if self.norms or weight is None:
            return Norm(weight, bias)
        if weight.ndim > 1:
            weight = weight.reshape(shape_at(changing, _flat(weight), site))
        return Full(weight, bias)


def _flat(change: LoRA | Tensor) -> tuple[int, int]:
    """(out, rest)."""
    shape = change.extent if isinstance(change, LoRA) else tuple(change.shape)
    return shape[0], prod(shape[1:])


def _shaped(lora: LoRA, shape: tuple[int, ...]) -> LoRA:
    """The same change with factors of the dimensions that a weight of `shape` has."""
    if lora.mid is not None or lora.extent == shape:
        return lora
    up = lora.up.reshape(*lora.up.shape[:2], *[1] * (len(shape) - 2))
    return replace(lora, down=lora.down.reshape(-1, *shape[1:]), up=up)


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


def concatenated(pairs: Sequence[LoRA]) -> LoRA:
    """One LoRA of rank Σ rank: Σ scale · up · down, exactly.

    Its scale is the largest of theirs; what remains of the others is multiplied into their up. In half
    precision that would round, so there it becomes gains, and the number formats stay.
    Raises AdapterError if the pairs are of different layers.
    """
    if len(pairs) == 1:
        return pairs[0]
    _require_alike(pairs)
    # Factors have gains in up, which is not asked for here.
    downs = [pair.down if pair.mid is None else pair.factors().down for pair in pairs]
    scale = max(abs(pair.scale) for pair in pairs)
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
