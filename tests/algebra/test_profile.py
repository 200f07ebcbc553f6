"""What is told of one adapter: its norms, and the spectrum that says what a smaller one would lose."""

import math

import pytest
import torch

from difflora import profile, resize
from difflora.adapter import Adapter
from difflora.families.model import Model
from difflora.kinds import Full
from tests.algebra.adapters import CONV, LINEAR, TEXT, loras, of_kind


def test_the_values_of_a_module_are_the_singular_values_of_its_change() -> None:
    adapter = loras(1, 3)
    for path, module in profile(adapter).modules.items():
        wanted = torch.linalg.svdvals(adapter.delta(path).flatten(1).double())[:3]
        assert module.values == pytest.approx(wanted.tolist(), rel=1e-5)
        assert module.norm == pytest.approx(float(wanted.norm()), rel=1e-5)


def test_the_spectra_of_the_components_add_up_to_the_norm() -> None:
    found = profile(loras(1, 3))
    assert list(found.spectra) == ["text_encoder", "unet"]
    assert found.spectra["text_encoder"] == pytest.approx(found.modules[TEXT].values)
    first = math.hypot(found.modules[LINEAR].values[0], found.modules[CONV].values[0])
    assert found.spectra["unet"][0] == pytest.approx(first)
    total = sum(value**2 for values in found.spectra.values() for value in values)
    assert math.sqrt(total) == pytest.approx(found.norm)


@pytest.mark.parametrize("rank", [1, 2, 4, 6, 9])
def test_the_error_of_a_rank_is_what_resizing_loses(rank: int) -> None:
    adapter = loras(1, 6)
    _, report = resize(adapter, rank=rank)
    assert profile(adapter).error(rank) == pytest.approx(report.total_error, abs=1e-6)


def test_modules_of_several_ranks_are_added_term_by_term() -> None:
    few, many = loras(1, 2).modules, loras(2, 5).modules
    found = profile(Adapter({LINEAR: few[LINEAR], CONV: many[CONV]}))
    assert len(found.spectra["unet"]) == 5
    assert found.spectra["unet"][4] == pytest.approx(found.modules[CONV].values[4])


def test_an_adapter_that_changes_nothing_loses_nothing() -> None:
    found = profile(Adapter({LINEAR: (Full(torch.zeros(12, 20)),)}))
    assert found.norm == 0 and found.error(1) == 0 and found.spectra["unet"][0] == 0


def test_what_depends_on_a_base_is_named(shapes_model: Model) -> None:
    adapter = of_kind(shapes_model, "dora_out", 1)
    found = profile(adapter)
    assert not found.modules and found.unknown.keys() == adapter.modules.keys() and found.spectra == {}
    assert profile(adapter, base=shapes_model).modules.keys() == adapter.modules.keys()
