"""DoRA: the shape of the magnitude tells the axis, and what comes out has the lengths that it says."""

import pytest
import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds import DoRA, LoHa, LoRA
from tests.kinds.samples import sample

LAYERS = {"linear": (8, 6), "conv 1x1": (8, 6, 1, 1), "conv 3x3": (8, 6, 3, 3)}
each_layer = pytest.mark.parametrize("shape", LAYERS.values(), ids=LAYERS.keys())


def pristine(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def dora(name: str, shape: tuple[int, ...]) -> DoRA:
    change = sample(name, shape)
    assert isinstance(change, DoRA)
    return change


@each_layer
@pytest.mark.parametrize("name", ["dora_out", "dora_loha", "dora_lokr"])
def test_every_output_row_has_the_length_of_its_magnitude(name: str, shape: tuple[int, ...]) -> None:
    change, weight = dora(name, shape), pristine(shape)
    changed = weight + change.delta(weight)
    torch.testing.assert_close(changed.flatten(1).norm(dim=1), change.magnitude.flatten(), rtol=1e-5, atol=0)


@each_layer
def test_every_input_column_has_the_length_of_its_magnitude(shape: tuple[int, ...]) -> None:
    change, weight = dora("dora_in", shape), pristine(shape)
    changed = weight + change.delta(weight)
    lengths = changed.transpose(0, 1).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, change.magnitude.flatten(), rtol=1e-5, atol=0)


@each_layer
@pytest.mark.parametrize("name", ["dora_out", "dora_in"])
def test_the_direction_is_that_of_the_weight_with_the_change_inside(
    name: str, shape: tuple[int, ...]
) -> None:
    change, weight = dora(name, shape), pristine(shape)
    moved, changed = weight + change.inner.delta(weight), weight + change.delta(weight)
    axis = 0 if change.on_output else 1
    ratio = (changed / moved).transpose(0, axis).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-5)


@each_layer
@pytest.mark.parametrize("over", [1, 0], ids=["output rows", "input columns"])
def test_the_norms_of_the_base_and_an_up_of_zero_change_nothing(shape: tuple[int, ...], over: int) -> None:
    weight, inner = pristine(shape), sample("lora", shape)
    assert isinstance(inner, LoRA)
    magnitude = torch.linalg.vector_norm(weight, dim=[over, *range(2, len(shape))], keepdim=True)
    change = DoRA(LoRA(inner.down, torch.zeros_like(inner.up), 1.0), magnitude)
    assert change.delta(weight).abs().max() < 1e-6


def test_on_a_square_layer_the_shape_tells_the_axis() -> None:
    inner, weight = sample("lora", (6, 6)), pristine((6, 6))
    assert isinstance(inner, LoRA)
    rows, columns = DoRA(inner, torch.ones(6, 1)), DoRA(inner, torch.ones(1, 6))
    assert rows.on_output and not columns.on_output
    torch.testing.assert_close((weight + rows.delta(weight)).norm(dim=1), torch.ones(6))
    torch.testing.assert_close((weight + columns.delta(weight)).norm(dim=0), torch.ones(6))


def test_a_vector_tells_no_axis_and_is_refused() -> None:
    inner = sample("lora", (6, 8))
    assert isinstance(inner, LoRA)
    with pytest.raises(AdapterError, match=r"dora_scale is \(8,\)"):
        DoRA(inner, torch.ones(8))


def test_input_columns_of_a_flattened_kernel_are_known_by_the_layer() -> None:
    inner, weight = sample("loha", (8, 6, 3, 3)), pristine((8, 6, 3, 3))
    assert isinstance(inner, LoHa)
    change = DoRA(inner, torch.full((1, 6, 1, 1), 2.0))
    lengths = (weight + change.delta(weight)).transpose(0, 1).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((6,), 2.0))
    misfit = DoRA(inner, torch.ones(1, 54))
    assert "dora_scale is (1, 54)" in (misfit.problem((8, 6, 3, 3)) or "")


def test_a_magnitude_of_more_dimensions_than_the_layer_is_the_same_numbers() -> None:
    change, weight = dora("dora_out", (8, 6)), pristine((8, 6))
    wide = DoRA(change.inner, change.magnitude[..., None, None])
    assert torch.equal(wide.delta(weight), change.delta(weight))


def test_rows_are_of_the_output_axis_alone() -> None:
    assert dora("dora_out", (8, 6)).rows(2, 5) is not None
    assert dora("dora_in", (8, 6)).rows(2, 5) is None


def test_a_row_of_zeros_stays_a_row_of_zeros() -> None:
    weight = pristine((8, 6))
    weight[3] = 0
    change = DoRA(LoRA(torch.zeros(1, 6), torch.zeros(8, 1), 1.0), torch.ones(8, 1))
    assert torch.equal(change.delta(weight)[3], torch.zeros(6))
