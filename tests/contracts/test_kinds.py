"""What every adapter kind promises, over KINDS × layers × dtypes. A new kind adds one line to SAMPLES."""

from collections.abc import Callable

import pytest
import torch

from difflora.errors import AdapterError, NeedsBase
from difflora.kinds import KINDS, Kind, LoRA

LAYERS = {"linear": (8, 6), "conv 1x1": (8, 6, 1, 1), "conv 3x3": (8, 6, 3, 3)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def lora(shape: tuple[int, ...], dtype: torch.dtype) -> LoRA:
    ones = [1] * (len(shape) - 2)
    return LoRA(torch.randn(4, *shape[1:], dtype=dtype), torch.randn(shape[0], 4, *ones, dtype=dtype), 0.25)


# One maker a kind: (weight shape, dtype of its tensors) -> a change of that weight.
SAMPLES: dict[type[Kind], Callable[[tuple[int, ...], torch.dtype], Kind]] = {LoRA: lora}

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
each_layer = pytest.mark.parametrize("shape", LAYERS.values(), ids=LAYERS.keys())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def sample(kind: type[Kind], shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Kind:
    return SAMPLES[kind](shape, dtype)


def test_names_are_unique() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)


@each_kind
@each_layer
@each_dtype
def test_delta_is_finite_float32_in_the_shape_of_the_weight(
    kind: type[Kind], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    weight = torch.randn(shape, dtype=dtype)
    before = weight.clone()
    delta = sample(kind, shape, dtype).delta(weight)
    assert delta.shape == shape and delta.dtype == torch.float32
    assert delta.isfinite().all() and delta.abs().max() > 0
    assert torch.equal(weight, before)


@each_kind
@each_layer
def test_delta_is_a_new_tensor_each_time_and_always_the_same(
    kind: type[Kind], shape: tuple[int, ...]
) -> None:
    change, weight = sample(kind, shape), torch.randn(shape)
    first = change.delta(weight)
    kept = first.clone()
    first.zero_()  # Adapter.delta adds to it in place
    assert torch.equal(change.delta(weight), kept)


@each_kind
@each_layer
def test_without_a_weight_delta_is_flat_or_says_what_it_needs(
    kind: type[Kind], shape: tuple[int, ...]
) -> None:
    change = sample(kind, shape)
    if kind.needs_weight:
        with pytest.raises(NeedsBase):
            change.delta()
    else:
        assert torch.equal(change.delta(), change.delta(torch.zeros(shape)).flatten(1))


@each_kind
@each_layer
def test_factors_are_the_exact_low_rank_form(kind: type[Kind], shape: tuple[int, ...]) -> None:
    change, weight = sample(kind, shape), torch.randn(shape)
    factors = change.factors()
    if factors is not None:
        product = factors.up.double().flatten(1) @ factors.down.double().flatten(1) * factors.scale
        torch.testing.assert_close(change.delta(weight).double().flatten(1), product, rtol=1e-5, atol=1e-5)


@each_kind
@each_layer
def test_tensors_name_everything_that_defines_the_change(kind: type[Kind], shape: tuple[int, ...]) -> None:
    tensors = sample(kind, shape).tensors()
    assert tensors
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


@each_kind
@each_layer
def test_problem_and_delta_agree_on_what_fits(kind: type[Kind], shape: tuple[int, ...]) -> None:
    change = sample(kind, shape)
    assert change.problem(shape) is None
    for wrong in [(shape[0] + 1, *shape[1:]), (shape[0], shape[1] + 1, *shape[2:]), shape[:1]]:
        assert change.problem(wrong)
        with pytest.raises(AdapterError):
            change.delta(torch.zeros(wrong))


@each_kind
def test_there_is_a_sample_of_every_kind(kind: type[Kind]) -> None:
    assert type(sample(kind, (8, 6))) is kind
