"""The ways to merge: one table. Linear ones weigh each adapter; the others work on the entries of ΔW."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difflora.draws import generator
from difflora.errors import AdapterError, ConfigError


@dataclass(frozen=True, slots=True)
class Linear:
    """Σ weight · ΔW over what `divisor` makes of the dials of all adapters."""

    title: str
    source: str
    divisor: Callable[[Sequence[float]], float]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """ΔW of one adapter for one module, in float32 and not weighted; `key` names both to the draws."""

    delta: Tensor
    weight: float
    key: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sparsity:
    """The share of the entries of ΔW that is kept, and the seed of random choices."""

    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError(f"density is {self.density}, expected a share above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A function of the entries of every ΔW; its result has no low-rank form of its own."""

    title: str
    source: str
    combine: Callable[[Sequence[Part], Sparsity], Tensor]


def largest(delta: Tensor, density: float) -> Tensor:
    """`delta` with all but the ⌊density · n⌋ entries of largest magnitude set to 0; equals of the smallest
    of these stay."""
    count = int(density * delta.numel())
    if count == 0:
        return torch.zeros_like(delta)
    sizes = delta.abs().flatten()
    threshold = sizes.kthvalue(delta.numel() - count + 1).values
    return torch.where(delta.abs() >= threshold, delta, 0.0)


def _one(dials: Sequence[float]) -> float:
    return 1.0


def _total(dials: Sequence[float]) -> float:
    if sum(dials) == 0.0:
        raise AdapterError("weights that add up to 0 have no average; use method 'add'")
    return sum(dials)


def _magnitude(parts: Sequence[Part], sparsity: Sparsity) -> Tensor:
    return _sum([largest(part.delta, sparsity.density) * part.weight for part in parts])


def _dare(parts: Sequence[Part], sparsity: Sparsity) -> Tensor:
    return _sum([_dropped(part, sparsity) * (part.weight / sparsity.density) for part in parts])


def _dropped(part: Part, sparsity: Sparsity) -> Tensor:
    source = generator(sparsity.seed, "dare", *part.key)
    kept = torch.rand(part.delta.shape, generator=source) < sparsity.density
    return part.delta * kept.to(part.delta.device)


def _ties(parts: Sequence[Part], sparsity: Sparsity) -> Tensor:
    """Trim, elect a sign by the weighted sum, and take the mean of those that agree with it."""
    weighted = [largest(part.delta, sparsity.density) * part.weight for part in parts]
    elected = torch.where(_sum(weighted) >= 0, 1.0, -1.0)
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for delta in weighted:
        agrees = delta.sign() == elected
        total += torch.where(agrees, delta, 0.0)
        count += agrees
    return total / count.clamp_min(1)


def _sum(deltas: Sequence[Tensor]) -> Tensor:
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total += delta
    return total


METHODS: Mapping[str, Linear | Elementwise] = {
    "add": Linear(
        "the exact weighted sum",
        "Ilharco et al. 2023, Editing Models with Task Arithmetic",
        _one,
    ),
    "average": Linear(
        "the weighted mean: weights are divided by their sum",
        "Wortsman et al. 2022, Model soups",
        _total,
    ),
    "ties": Elementwise(
        "the largest entries of each; where signs differ, the mean of those that agree with the heavier side",
        "Yadav et al. 2023, TIES-Merging: Resolving Interference When Merging Models",
        _ties,
    ),
    "dare": Elementwise(
        "the weighted sum of random entries, enlarged by 1 / density",
        "Yu et al. 2024, Language Models are Super Mario",
        _dare,
    ),
    "magnitude": Elementwise(
        "the weighted sum of the largest entries of each",
        "Han et al. 2015, Learning both Weights and Connections for Efficient Neural Networks",
        _magnitude,
    ),
}


def method_of(name: str) -> Linear | Elementwise:
    """The method of that name. Raises ConfigError listing the names if there is none."""
    if name not in METHODS:
        raise ConfigError(f"no merge method is called {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name]
