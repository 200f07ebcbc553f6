"""What every adapter kind promises, over the samples of every kind × layers × dtypes.

A new kind adds its samples to tests/kinds/samples.py.
"""

import pytest
import torch
from torch import Tensor

from difflora.errors import AdapterError, NeedsBase
from difflora.kinds import KINDS, Kind
from tests.kinds.samples import LAYER_NAMES, NORM_NAMES, sample

LAYERS = {"linear": (8, 6), "conv 1x1": (8, 6, 1, 1), "conv 3x3": (8, 6, 3, 3)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = [
    *((name, shape) for name in LAYER_NAMES for shape in LAYERS.values()),
    *((name, (8,)) for name in NORM_NAMES),
]

each_case = pytest.mark.parametrize(
    ("name", "shape"), CASES, ids=[f"{name}-{'x'.join(map(str, shape))}" for name, shape in CASES]
)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
Shape = tuple[int, ...]


def flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0], -1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5)


def pristine(shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(dtype)


def claims(leaves: dict[str, Shape]) -> dict[type[Kind], frozenset[str]]:
    """What each kind gets when they are asked in the order of KINDS."""
    left, found = dict(leaves), {}
    for kind in KINDS:
        if claimed := kind.claim(left):
            found[kind] = claimed
            left = {leaf: shape for leaf, shape in left.items() if leaf not in claimed}
    return found


def again(change: Kind) -> Kind:
    """What a reader makes of the leaves of `change`."""
    leaves = change.to_leaves()
    return type(change).from_leaves(leaves, lambda rank: float(leaves["alpha"]) / rank)


def test_names_are_unique() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_there_is_a_sample_of_every_kind() -> None:
    sampled = {type(sample(name, shape)) for name, shape in CASES}
    assert sampled == set(KINDS)


@each_case
def test_a_sample_is_the_same_for_the_same_seed_and_another_for_another(name: str, shape: Shape) -> None:
    one, two, other = (sample(name, shape, seed=seed).tensors() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@each_case
@each_dtype
def test_delta_is_finite_float32_in_the_shape_of_the_weight(
    name: str, shape: Shape, dtype: torch.dtype
) -> None:
    weight = pristine(shape, dtype)
    before = weight.clone()
    change = sample(name, shape, dtype)
    delta = change.delta(weight)
    assert delta.shape == shape and delta.dtype == torch.float32
    assert delta.isfinite().all() and (delta.abs().max() > 0 or change.bias_delta() is not None)
    assert torch.equal(weight, before)


@each_case
@each_dtype
def test_delta_of_half_precision_tensors_is_computed_in_float32(
    name: str, shape: Shape, dtype: torch.dtype
) -> None:
    change = sample(name, shape, dtype)
    leaves = {leaf: tensor.float() for leaf, tensor in change.to_leaves().items()}
    wide = type(change).from_leaves(leaves, lambda rank: float(leaves["alpha"]) / rank)
    weight = pristine(shape, dtype)
    assert torch.equal(change.delta(weight), wide.delta(weight.float()))


@each_case
def test_delta_is_a_new_tensor_each_time_and_always_the_same(name: str, shape: Shape) -> None:
    change, weight = sample(name, shape), pristine(shape)
    first = change.delta(weight)
    kept = first.clone()
    first.fill_(7.0)  # Adapter.delta adds to it in place
    assert torch.equal(change.delta(weight), kept)
    bias = torch.ones(shape[0])
    shift = change.bias_delta(bias)
    if shift is not None:
        kept = shift.clone()
        shift.fill_(7.0)
        assert torch.equal(change.bias_delta(bias), kept)


@each_case
def test_delta_is_where_the_weight_is(name: str, shape: Shape) -> None:
    change = sample(name, shape)
    delta = change.delta(torch.empty(shape, device="meta"))
    assert delta.device.type == "meta" and delta.shape == shape
    shift = change.bias_delta(torch.empty(shape[:1], device="meta"))
    assert shift is None or (shift.device.type == "meta" and shift.shape == shape[:1])


@each_case
def test_delta_can_be_differentiated_in_every_factor(name: str, shape: Shape) -> None:
    leaves = {leaf: tensor.clone() for leaf, tensor in sample(name, shape).to_leaves().items()}
    factors = {leaf: tensor.requires_grad_() for leaf, tensor in leaves.items() if tensor.ndim}
    kind = type(sample(name, shape))
    change = kind.from_leaves(leaves, lambda rank: float(leaves["alpha"]) / rank)
    total = change.delta(pristine(shape)).square().sum()
    if (shift := change.bias_delta(torch.zeros(shape[0]))) is not None:
        total = total + shift.square().sum()
    total.backward()
    for leaf, tensor in factors.items():
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any(), leaf


@each_case
def test_without_a_weight_delta_is_flat_or_says_what_it_needs(name: str, shape: Shape) -> None:
    change = sample(name, shape)
    if type(change).needs_weight:
        with pytest.raises(NeedsBase, match=change.name):
            change.delta()
    else:
        wide = change.delta(torch.zeros(shape)).reshape(shape[0], -1)
        assert torch.equal(change.delta().expand(wide.shape), wide)


@each_case
@each_dtype
def test_the_claimed_leaves_are_all_and_read_back_bit_for_bit(
    name: str, shape: Shape, dtype: torch.dtype
) -> None:
    change = sample(name, shape, dtype)
    leaves = change.to_leaves()
    assert claims({leaf: tuple(leaves[leaf].shape) for leaf in leaves}) == {type(change): frozenset(leaves)}
    back, own = again(change).tensors(), change.tensors()
    assert back.keys() == own.keys()
    for key, tensor in own.items():
        assert back[key].dtype == tensor.dtype and torch.equal(back[key], tensor), key
    again_leaves = again(change).to_leaves()
    assert all(torch.equal(again_leaves[leaf], leaves[leaf]) for leaf in leaves)


@each_case
def test_factors_are_the_exact_low_rank_form(name: str, shape: Shape) -> None:
    change, weight = sample(name, shape), pristine(shape)
    factors = change.factors()
    if factors is not None:
        product = flat(factors.up).double() @ flat(factors.down).double() * factors.scale
        close(flat(change.delta(weight)), product)


@each_case
def test_the_live_form_is_the_delta(name: str, shape: Shape) -> None:
    change, weight = sample(name, shape), pristine(shape)
    form = change.live_form(weight)
    if form is None:
        return
    total = torch.zeros_like(flat(weight)).double()
    if form.gain is not None:
        assert form.gain.shape == (shape[0],)
        total += form.gain.double()[:, None] * flat(weight).double()
    if form.factors is not None:
        total += flat(form.factors.up).double() @ flat(form.factors.down).double() * form.factors.scale
    close(flat(change.delta(weight)), total)


@each_case
def test_times_multiplies_the_delta_and_the_change_of_the_bias(name: str, shape: Shape) -> None:
    change, weight, bias = sample(name, shape), pristine(shape), torch.zeros(shape[0])
    for dial in (0.0, 0.5, -1.7):
        scaled = change.times(dial)
        if scaled is None:
            assert type(change).needs_weight, "exact for every kind that is no function of the weight"
            return
        close(scaled.delta(weight), change.delta(weight) * dial)
        shift, scaled_shift = change.bias_delta(bias), scaled.bias_delta(bias)
        assert (shift is None) == (scaled_shift is None)
        if shift is not None and scaled_shift is not None:
            close(scaled_shift, shift * dial)


@each_case
def test_the_delta_of_rows_is_the_rows_of_the_delta(name: str, shape: Shape) -> None:
    change, weight, bias = sample(name, shape), pristine(shape), torch.ones(shape[0])
    for start, stop in ((0, 4), (2, 4), (4, 8), (3, 7), (0, 8)):
        part = change.rows(start, stop)
        if part is None:
            continue
        assert part.problem((stop - start, *shape[1:])) is None
        close(part.delta(weight[start:stop]), change.delta(weight)[start:stop])
        shift, part_shift = change.bias_delta(bias), part.bias_delta(bias[start:stop])
        assert (shift is None) == (part_shift is None)
        if shift is not None and part_shift is not None:
            close(part_shift, shift[start:stop])


@each_case
def test_tensors_name_everything_that_defines_the_change(name: str, shape: Shape) -> None:
    tensors = sample(name, shape).tensors()
    assert tensors
    assert all(isinstance(tensor, Tensor) for tensor in tensors.values())


@each_case
def test_problem_and_delta_agree_on_what_fits(name: str, shape: Shape) -> None:
    change = sample(name, shape)
    assert change.problem(shape) is None
    wrong = {"rows": (shape[0] + 1, *shape[1:]), "columns": (*shape[:1], 5, *shape[2:])}
    refused = set()
    for side, other in wrong.items():
        if reason := change.problem(other):
            refused.add(side)
            assert str(other) in reason
            with pytest.raises(AdapterError):
                change.delta(torch.zeros(other))
        else:
            assert change.delta(torch.ones(other)).shape == other
    # what is of one axis alone fits whatever the other is
    rows_alone = name.startswith(("oft", "coft", "boft", "bias", "ia3_out"))
    assert refused == ({"rows"} if rows_alone else {"columns"} if name == "ia3_in" else {"rows", "columns"})
