"""LoRA against the plain sum over ranks, for every layer and number format it is made for."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds import LoRA

RANK = 3
LAYERS = {"linear": (10, 6), "conv 1x1": (10, 6, 1, 1), "conv 3x3": (10, 6, 3, 3)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def lora(shape: Sequence[int], *, dtype: torch.dtype = torch.float32, scale: float = 0.5) -> LoRA:
    """A LoRA for a layer whose weight has this shape."""
    up_shape = (shape[0], RANK, *([1] * (len(shape) - 2)))
    return LoRA(torch.randn(RANK, *shape[1:], dtype=dtype), torch.randn(up_shape, dtype=dtype), scale)


def plain(change: LoRA, shape: Sequence[int]) -> Tensor:
    """Σ over ranks of scale · up · down, in float64."""
    up, down = change.up.double().flatten(1), change.down.double().flatten(1)
    return torch.einsum("or,ri->oi", up, down).mul(change.scale).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", LAYERS.values(), ids=LAYERS.keys())
def test_delta_is_the_plain_sum_in_float32(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    change = lora(shape, dtype=dtype)
    delta = change.delta(torch.zeros(shape, dtype=dtype))
    assert delta.dtype == torch.float32
    assert delta.shape == shape
    torch.testing.assert_close(delta.double(), plain(change, shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", LAYERS.values(), ids=LAYERS.keys())
def test_delta_without_a_weight_is_the_same_numbers_flattened(shape: tuple[int, ...]) -> None:
    change = lora(shape)
    flat = change.delta()
    assert flat.shape == (shape[0], plain(change, shape)[0].numel())
    assert torch.equal(flat, change.delta(torch.zeros(shape)).flatten(1))


@pytest.mark.parametrize("shape", LAYERS.values(), ids=LAYERS.keys())
def test_delta_does_not_depend_on_the_weight_or_change_the_factors(shape: tuple[int, ...]) -> None:
    change = lora(shape)
    down, up = change.down.clone(), change.up.clone()
    assert torch.equal(change.delta(torch.randn(shape)), change.delta(torch.zeros(shape)))
    assert torch.equal(change.down, down) and torch.equal(change.up, up)


@pytest.mark.parametrize("shape", LAYERS.values(), ids=LAYERS.keys())
def test_the_factors_are_the_ones_it_was_made_of(shape: tuple[int, ...]) -> None:
    change = lora(shape)
    factors = change.factors()
    assert factors.down is change.down and factors.up is change.up and factors.scale == change.scale
    assert change.rank == RANK


def test_a_linear_pair_fits_a_1x1_convolution_and_the_other_way_round() -> None:
    linear, pointwise = lora((10, 6)), lora((10, 6, 1, 1))
    assert linear.delta(torch.zeros(10, 6, 1, 1)).shape == (10, 6, 1, 1)
    assert torch.equal(linear.delta(torch.zeros(10, 6, 1, 1)).flatten(1), linear.delta())
    assert torch.equal(pointwise.delta(torch.zeros(10, 6)), pointwise.delta())


def test_a_flattened_convolution_fits_its_kernel() -> None:
    flat = LoRA(torch.randn(RANK, 6 * 9), torch.randn(10, RANK), 1.0)
    assert torch.equal(flat.delta(torch.zeros(10, 6, 3, 3)).flatten(1), flat.delta())


def test_scale_multiplies_exactly_by_powers_of_two() -> None:
    one = lora((10, 6), scale=1.0)
    half = LoRA(one.down, one.up, 0.5)
    assert torch.equal(half.delta(), one.delta() * 0.5)


@pytest.mark.parametrize(
    ("weight", "change"),
    [
        ((10, 7), (10, 6)),
        ((9, 6), (10, 6)),
        ((10, 6, 3, 3), (10, 6)),
        ((10, 6), (10, 6, 3, 3)),
        ((10, 6, 1, 9), (10, 6, 3, 3)),
        ((10,), (10, 6)),
    ],
)
def test_a_weight_of_another_shape_is_refused_with_both_shapes(
    weight: tuple[int, ...], change: tuple[int, ...]
) -> None:
    misfit = lora(change)
    assert misfit.problem(weight) is not None
    with pytest.raises(AdapterError) as caught:
        misfit.delta(torch.zeros(weight))
    assert str(weight) in str(caught.value) and str(tuple(misfit.down.shape)) in str(caught.value)


@pytest.mark.parametrize(
    ("down", "up", "message"),
    [
        ((4, 6), (10, 3), "rank 4.*rank 3"),
        ((4,), (10, 4), "2 dimensions"),
        ((4, 6, 3), (10, 4), "2 dimensions"),
        ((4, 6, 3, 3), (10, 4, 3, 3), r"\(out, rank, 1, 1\)"),
        ((0, 6), (10, 0), "rank 0"),
    ],
)
def test_factors_that_no_layer_has_are_refused(
    down: tuple[int, ...], up: tuple[int, ...], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        LoRA(torch.zeros(down), torch.zeros(up), 1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", LAYERS.values(), ids=LAYERS.keys())
def test_gains_weight_each_rank(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    change = replace(lora(shape, dtype=dtype), gains=torch.tensor([0.3, -1.7, 1.0]))
    assert change.gains is not None
    up, down = change.up.double().flatten(1) * change.gains, change.down.double().flatten(1)
    wanted = (up @ down).mul(change.scale)
    factors = change.factors()
    stored = LoRA.from_leaves(change.to_leaves(), lambda rank: float(change.to_leaves()["alpha"]) / rank)
    for same in (change, stored, change.folded(), LoRA(*factors)):
        torch.testing.assert_close(same.delta().double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(change.rows(2, 5).delta(), change.delta()[2:5])
    torch.testing.assert_close(change.times(-2.0).delta(), -2.0 * change.delta())
    assert change.tensors()["gains"] is change.gains


def test_gains_of_another_rank_are_refused() -> None:
    with pytest.raises(AdapterError, match=r"its gains are \(2,\), but up is \(10, 3\); expected \(3,\)"):
        replace(lora((10, 6)), gains=torch.ones(2))
