"""The methods that work on entries, against plain dense formulas and PEFT's own functions."""

import weakref
from typing import Any

import pytest
import torch
from peft.utils.merge_utils import magnitude_prune, ties
from torch import Tensor

from difflora import Stack, merge, same
from difflora.algebra.changes import Site, bias_of
from difflora.algebra.elementwise import combined
from difflora.algebra.methods import METHODS, Sparsity, largest
from difflora.errors import ConfigError, NeedsBase
from difflora.families.model import Model
from difflora.kinds import Full, Kind
from tests.algebra.adapters import CONV, LINEAR, NORM, TEXT, loras, of_kind, relative


def deltas(path: str) -> list[Tensor]:
    return [loras(seed, rank).delta(path) for seed, rank in ((1, 3), (2, 5), (3, 2))]


def stack(weights: tuple[float, ...]) -> Stack:
    adapters = (loras(1, 3), loras(2, 5), loras(3, 2))
    return Stack(list(zip(adapters, weights, strict=True)))


@pytest.mark.parametrize("density", [0.2, 0.5, 0.99])
@pytest.mark.parametrize("path", [LINEAR, CONV, TEXT])
def test_ties_is_pefts_at_equal_weights(path: str, density: float) -> None:
    merged, _ = merge(stack((1.0, 1.0, 1.0)), method="ties", density=density)
    wanted = ties(deltas(path), torch.ones(3), density)
    assert relative(merged.delta(path), wanted) < 1e-6


@pytest.mark.parametrize("density", [0.2, 0.99])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, -0.4, 1.5)])
def test_magnitude_is_pefts(weights: tuple[float, ...], density: float) -> None:
    merged, _ = merge(stack(weights), method="magnitude", density=density)
    for path in (LINEAR, CONV, TEXT):
        wanted = magnitude_prune(deltas(path), torch.tensor(weights), density)
        assert relative(merged.delta(path), wanted) < 1e-6


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_ties_elects_by_the_weighted_sum(density: float) -> None:
    weights = (0.7, -0.4, 1.5)
    merged, _ = merge(stack(weights), method="ties", density=density)
    for path in (LINEAR, CONV, TEXT):
        trimmed = [w * _top(delta, density) for w, delta in zip(weights, deltas(path), strict=True)]
        wanted = torch.zeros_like(trimmed[0])
        for row in range(wanted.shape[0]):
            for column in range(wanted.shape[1]):
                entries = [float(delta[row, column]) for delta in trimmed]
                sign = 1 if sum(entries) >= 0 else -1
                agreeing = [entry for entry in entries if entry * sign > 0]
                wanted[row, column] = sum(agreeing) / max(1, len(agreeing))
        assert relative(merged.delta(path), wanted) < 1e-5


def _top(delta: Tensor, density: float) -> Tensor:
    keep = delta.abs().flatten().argsort(descending=True)[: int(density * delta.numel())]
    result = torch.zeros_like(delta).flatten()
    result[keep] = delta.flatten()[keep]
    return result.reshape(delta.shape)


def test_dare_keeps_random_entries_enlarged_so_that_the_mean_stays() -> None:
    a = loras(1, 3)
    whole = a.delta(LINEAR)
    total = torch.zeros_like(whole)
    for seed in range(300):
        drawn = merge(Stack([(a, 1.0)]), method="dare", density=0.4, seed=seed)[0].delta(LINEAR)
        kept = drawn != 0
        assert torch.allclose(drawn[kept], whole[kept] / 0.4, rtol=1e-5)
        total += drawn
    assert 0.3 < float(kept.float().mean()) < 0.5
    assert relative(total / 300, whole) < 0.12


@pytest.mark.parametrize("method", ["dare", "magnitude"])
def test_keeping_every_entry_is_the_sum(method: str) -> None:
    merged, _ = merge(stack((0.7, -0.4, 1.5)), method=method, density=1.0)
    exact, _ = merge(stack((0.7, -0.4, 1.5)))
    assert relative(merged.delta(CONV), exact.delta(CONV)) < 1e-6


def test_draws_depend_on_the_seed_the_module_and_the_adapter_alone() -> None:
    a, b = loras(1, 3), loras(2, 5)
    alone, _ = merge(Stack([(a, 1.0)]), method="dare")
    again, _ = merge(Stack([(a, 1.0)]), method="dare")
    other, _ = merge(Stack([(a, 1.0)]), method="dare", seed=1)
    assert same(alone, again) and not same(alone, other)
    both, _ = merge(Stack([(b, 1.0), (a, 1.0)]), method="dare")
    b_alone, _ = merge(Stack([(b, 1.0)]), method="dare")
    assert relative(both.delta(CONV), alone.delta(CONV) + b_alone.delta(CONV)) < 1e-6


@pytest.mark.parametrize("method", ["ties", "dare", "magnitude"])
def test_results_are_full_or_of_the_rank_asked_for(method: str) -> None:
    full, report = merge(stack((1.0, 0.5, 0.5)), method=method)
    (kind,) = full.modules[CONV]
    assert isinstance(kind, Full) and kind.diff.shape == (9, 4, 3, 3) and report.exact
    small, report = merge(stack((1.0, 0.5, 0.5)), method=method, rank=4)
    assert report.ranks[CONV] == 4
    assert relative(small.delta(CONV), full.delta(CONV)) == pytest.approx(report.error[CONV], abs=1e-6)


@pytest.mark.parametrize("method", ["ties", "dare", "magnitude"])
def test_with_a_rank_no_more_than_one_module_is_whole(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []
    left: list[int] = []

    def counted(*given: Any, **named: Any) -> tuple[Kind, ...]:
        left.append(sum(tensor() is not None for tensor in made))
        kinds = combined(*given, **named)
        made.extend(weakref.ref(kind.diff) for kind in kinds if isinstance(kind, Full))
        return kinds

    monkeypatch.setattr("difflora.algebra.merging.combined", counted)
    merge(stack((1.0, 0.5, 0.5)), method=method, rank=4)
    assert len(made) == 3 and left == [0, 0, 0]


@pytest.mark.parametrize("method", ["ties", "dare", "magnitude"])
def test_biases_and_norms_are_merged_by_the_same_rule(shapes_model: Model, method: str) -> None:
    entries = [(of_kind(shapes_model, name, 1), 1.0) for name in ("full_bias", "norm_bias", "bias")]
    merged, _ = merge(Stack(entries), method=method, density=1.0)
    exact, _ = merge(Stack(entries))
    for path in (CONV, NORM):
        bias, wanted = (bias_of(one.modules[path], Site()) for one in (merged, exact))
        assert bias is not None and wanted is not None and bias.shape == wanted.shape
        if method != "ties":  # which takes means
            assert relative(bias, wanted) < 1e-6
    assert relative(merged.delta(NORM).flatten(), exact.delta(NORM).flatten()) < (
        2 if method == "ties" else 1e-6
    )


def test_entries_of_weight_dependent_kinds_come_from_the_base(shapes_model: Model) -> None:
    one = Stack([(of_kind(shapes_model, "dora_out", 1), 0.5)])
    with pytest.raises(NeedsBase, match=r"attn1\.to_q"):
        merge(one, method="magnitude")
    merged, _ = merge(one, method="magnitude", density=1.0, base=shapes_model)
    weight = shapes_model.module(CONV).weight
    assert relative(merged.delta(CONV, weight), one.delta(CONV, weight)) < 1e-6


def test_the_table_names_a_source_for_every_method() -> None:
    assert set(METHODS) == {"add", "average", "ties", "dare", "magnitude"}
    assert all(row.source and row.title for row in METHODS.values())


def test_how_many_entries_stay() -> None:
    delta = torch.tensor([[3.0, -1.0], [0.5, -2.0]])
    assert largest(delta, 0.5).tolist() == [[3.0, 0.0], [0.0, -2.0]]
    assert largest(delta, 0.2).count_nonzero() == 0
    assert torch.equal(largest(delta, 1.0), delta)
    for density in (0.0, 1.5):
        with pytest.raises(ConfigError, match="density"):
            Sparsity(density)
