"""Merges that work on the entries of ΔW: every tensor that adapters change of one module, taken together."""

from __future__ import annotations

from collections.abc import Sequence

from difflora.algebra.changes import Site, bias_of, dense_of, is_vector, shape_at
from difflora.algebra.methods import Elementwise, Part, Sparsity
from difflora.algebra.sums import Weighted
from difflora.errors import AdapterError
from difflora.kinds import Bias, Full, Kind, Norm


def combined(
    parts: Sequence[Weighted],
    row: Elementwise,
    sparsity: Sparsity,
    *,
    site: Site,
    keys: Sequence[tuple[str, ...]],
) -> tuple[Kind, ...]:
    """What `row` makes of the weights' changes of all owners, and of the biases' changes of all owners.

    `keys` names each owner to the draws. Raises NeedsBase where a change must be computed from a weight that
    `site` does not have.
    """
    owners = sorted({part.owner for part in parts})
    weights: list[Part] = []
    biases: list[Part] = []
    kinds = [part.kind for part in parts]
    for owner in owners:
        own = [part.kind for part in parts if part.owner == owner]
        dial = next(part.weight for part in parts if part.owner == owner)
        if matrices := [kind for kind in own if not isinstance(kind, Bias)]:
            weights.append(Part(dense_of(matrices, site), dial, (*keys[owner], "weight")))
        if (shift := bias_of(own, site)) is not None:
            biases.append(Part(shift, dial, (*keys[owner], "bias")))
    weight = row.combine(_alike(weights), sparsity) if weights else None
    bias = row.combine(_alike(biases), sparsity) if biases else None
    if weight is None:
        return () if bias is None else (Bias(bias),)
    if all(is_vector(kind, site) for kind in kinds):
        return (Norm(weight.flatten(), bias),)
    flat = weight.flatten(1)
    shape = shape_at([kind for kind in kinds if not isinstance(kind, Bias)], (len(flat), flat.shape[1]), site)
    return (Full(flat.reshape(shape), bias),)


def _alike(parts: Sequence[Part]) -> Sequence[Part]:
    """The parts in the shape of the first one. Raises AdapterError if they are of different layers."""
    shape = parts[0].delta.shape
    for part in parts[1:]:
        if part.delta.numel() != shape.numel() or part.delta.shape[0] != shape[0]:
            raise AdapterError(
                f"changes of {tuple(shape)} and {tuple(part.delta.shape)} cannot be merged: they are of "
                "different layers"
            )
    return [Part(part.delta.reshape(shape), part.weight, part.key) for part in parts]
