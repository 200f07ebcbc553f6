"""Truncation is the best there is, says what it lost, and leaves alone what is small enough."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difflora import resize, same
from difflora.adapter import Adapter, AdapterMeta
from difflora.algebra.changes import Dense, Pair
from difflora.algebra.spectrum import Target, dense_spectrum, pair_spectrum
from difflora.errors import ConfigError, NeedsBase
from difflora.families.model import Model
from difflora.kinds import Bias, LoRA, Norm
from tests.algebra.adapters import CONV, LINEAR, NORM, TEXT, loras, of_kind, relative
from tests.kinds.samples import LAYER_NAMES


@pytest.mark.parametrize("rank", [1, 2, 5, 6])
def test_the_error_is_the_tail_of_the_singular_values(rank: int) -> None:
    a = loras(1, 7)
    small, report = resize(a, rank=rank)
    for path in a.modules:
        whole = a.delta(path).double()
        singular = torch.linalg.svdvals(whole)
        tail = float(singular[rank:].norm() / singular.norm())
        assert report.error[path] == pytest.approx(tail, abs=1e-7)
        assert relative(small.delta(path), whole) == pytest.approx(tail, abs=1e-6)
        assert report.norm[path] == pytest.approx(float(singular.norm()), rel=1e-6)
        (kind,) = small.modules[path]
        assert isinstance(kind, LoRA) and kind.rank == rank and kind.up.ndim == kind.down.ndim


@pytest.mark.parametrize("target", [{"rank": 7}, {"rank": 50}, {"energy": 1.0}, {"error": 0.0}])
def test_full_rank_is_the_adapter_itself(target: dict) -> None:
    a = loras(1, 7)
    resized, report = resize(a, **target)
    assert same(resized, a) and report.exact


@pytest.mark.parametrize("share", [0.3, 0.8, 0.99])
def test_energy_and_error_are_kept_with_as_few_terms_as_can_be(share: float) -> None:
    a = loras(1, 7)
    by_energy, report = resize(a, energy=share)
    by_error, again = resize(a, error=(1 - share) ** 0.5)
    assert report.ranks == again.ranks
    assert all(same(one, by_energy) for one in (by_energy, by_error))
    for path in a.modules:
        squares = torch.linalg.svdvals(a.delta(path).double()).square()
        kept = squares.cumsum(0) / squares.sum()
        rank = report.ranks[path]
        assert kept[rank - 1] >= share - 1e-9
        assert rank == 1 or kept[rank - 2] < share
        assert report.error[path] <= (1 - share) ** 0.5 + 1e-9


def test_terms_that_add_nothing_are_dropped() -> None:
    (one,) = loras(1, 3).modules[LINEAR]
    assert isinstance(one, LoRA)
    twice = LoRA(torch.cat([one.down, one.down]), torch.cat([one.up, one.up], dim=1), 0.5 * one.scale)
    resized, report = resize(Adapter({LINEAR: (twice,)}), error=0.0)
    assert report.ranks[LINEAR] == 3
    assert relative(resized.delta(LINEAR), one.delta()) < 1e-6


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_every_kind_can_become_a_small_lora(shapes_model: Model, name: str) -> None:
    a = of_kind(shapes_model, name, 1)
    small, report = resize(a, rank=2, base=shapes_model)
    for path in a.modules:
        weight, bias = shapes_model.module(path).weight, shapes_model.module(path)._parameters.get("bias")
        wanted, got = a.delta(path, weight), small.delta(path, weight)
        assert relative(got, wanted) == pytest.approx(report.error[path], abs=1e-5)
        before = [change for kind in a.modules[path] if (change := kind.bias_delta(bias)) is not None]
        after = [change for kind in small.modules[path] if (change := kind.bias_delta(bias)) is not None]
        assert len(before) == len(after) and all(map(torch.allclose, before, after))
        if wanted.ndim > 1 and name != "bias":
            assert report.ranks[path] <= 3 and {kind.name for kind in small.modules[path]} <= {"lora", "bias"}


def test_changes_of_vectors_stay() -> None:
    (lora,) = loras(1, 7).modules[CONV]
    bias, norm = Bias(torch.ones(9)), Norm(torch.ones(6), torch.ones(6))
    small, report = resize(Adapter({CONV: (lora, bias), NORM: (norm,)}), rank=2)
    assert small.modules[CONV][1] is bias and small.modules[NORM] == (norm,)
    assert report.error[NORM] == 0.0 and NORM not in report.norm


def test_the_error_is_of_the_whole_adapter_also_where_most_of_it_is_small_enough() -> None:
    small, large = loras(1, 2).modules, loras(2, 7).modules
    a = Adapter({LINEAR: small[LINEAR], CONV: small[CONV], TEXT: large[TEXT]})
    resized, report = resize(a, rank=4)
    wanted = torch.cat([a.delta(path).flatten() for path in a.modules])
    got = torch.cat([resized.delta(path).flatten() for path in a.modules])
    assert resized.modules[CONV] is a.modules[CONV] and report.norm.keys() == a.modules.keys()
    assert report.total_error == pytest.approx(relative(got, wanted), rel=1e-4)
    assert report.total_error < 0.9 * report.error[TEXT]


def test_what_depends_on_the_base_asks_for_it(shapes_model: Model) -> None:
    with pytest.raises(NeedsBase, match=r"attn1\.to_q"):
        resize(of_kind(shapes_model, "dora_out", 1), rank=2)


def test_the_hash_of_the_old_file_is_not_kept() -> None:
    a = Adapter(loras(1, 7).modules, AdapterMeta(name="a", trigger="sks", file_hash="0" * 64))
    small, _ = resize(a, rank=2)
    assert small.meta == AdapterMeta(name="a", trigger="sks") and small.data_hash != a.data_hash


@pytest.mark.parametrize(
    "target",
    [
        {},
        {"rank": 2, "energy": 0.9},
        {"rank": 0},
        {"energy": 0.0},
        {"energy": 1.1},
        {"error": 1.0},
        {"error": -0.1},
    ],
)
def test_targets_that_mean_nothing_are_refused(target: dict) -> None:
    with pytest.raises(ConfigError):
        resize(loras(1, 7), **target)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14), st.sampled_from([1e-4, 1.0, 1e4]))
def test_both_ways_to_a_spectrum_agree(out: int, rest: int, rank: int, size: float) -> None:
    source = torch.Generator().manual_seed(out * 1000 + rest * 20 + rank)
    up, down = torch.randn(out, rank, generator=source) * size, torch.randn(rank, rest, generator=source)
    matrix = up.double() @ down.double()
    wanted = torch.linalg.svdvals(matrix)
    for spectrum in (Pair(up.double(), down.double()).spectrum(), Dense(matrix).spectrum()):
        count = min(len(wanted), len(spectrum.values))
        assert torch.allclose(spectrum.values[:count], wanted[:count], atol=1e-7 * float(wanted[0]), rtol=0)
        whole = spectrum.left * spectrum.values @ spectrum.right
        assert relative(whole, matrix) < 1e-7
    for spectrum in (pair_spectrum(up, down), dense_spectrum(matrix)):
        assert spectrum.effective_rank <= min(out, rest, rank) + 1e-3


def test_no_change_at_all_is_one_empty_term() -> None:
    zero = Adapter(
        {LINEAR: (LoRA(torch.zeros(4, 6), torch.zeros(5, 4), 1.0),), TEXT: loras(1, 2).modules[TEXT]}
    )
    small, report = resize(zero, energy=0.9)
    assert report.ranks[LINEAR] == 1 and report.error[LINEAR] == 0.0
    assert not small.delta(LINEAR).any()
    assert Target(rank=3).of(torch.zeros(2)) == 2
