"""LoHa and LoKr against their formulas, and the low-rank forms that they have on layers large enough."""

import pytest
import torch

from difflora.errors import AdapterError
from difflora.kinds import DoRA, LoHa, LoKr, LoRA
from tests.kinds.samples import sample

LARGE = {"linear": (64, 48), "conv 3x3": (64, 48, 3, 3)}
each_large = pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE.keys())


def test_loha_is_the_elementwise_product_of_two_products() -> None:
    change = sample("loha", (8, 6))
    assert isinstance(change, LoHa)
    one, two = change.w1_a.double() @ change.w1_b.double(), change.w2_a.double() @ change.w2_b.double()
    torch.testing.assert_close(change.delta().double(), 0.5 * one * two, rtol=1e-5, atol=1e-6)


def test_loha_in_tucker_form_sums_over_both_indices_of_the_middle() -> None:
    change = sample("loha_tucker", (8, 6, 3, 3))
    assert isinstance(change, LoHa) and change.t1 is not None and change.t2 is not None
    halves = [
        torch.einsum("ijhw,io,jc->ochw", mid.double(), a.double(), b.double())
        for mid, a, b in ((change.t1, change.w1_a, change.w1_b), (change.t2, change.w2_a, change.w2_b))
    ]
    delta = change.delta(torch.zeros(8, 6, 3, 3)).double()
    torch.testing.assert_close(delta, 0.5 * halves[0] * halves[1], rtol=1e-5, atol=1e-6)


def test_lokr_is_the_kronecker_product_of_kernels() -> None:
    change = sample("lokr_full", (8, 6, 3, 3))
    assert isinstance(change, LoKr) and change.w1 is not None and change.w2 is not None
    delta = change.delta(torch.zeros(8, 6, 3, 3))
    assert torch.equal(delta, torch.kron(change.w1[..., None, None].contiguous(), change.w2))
    for row, column in ((0, 0), (5, 4), (7, 5)):
        o2, i2 = change.w2.shape[:2]
        block = change.w1[row // o2, column // i2] * change.w2[row % o2, column % i2]
        assert torch.equal(delta[row, column], block)


@each_large
@pytest.mark.parametrize("name", ["loha", "loha_tucker", "lokr", "lokr_both", "lokr_tucker"])
def test_a_large_layer_has_factors_smaller_than_its_delta(name: str, shape: tuple[int, ...]) -> None:
    change, weight = sample(name, shape), torch.zeros(shape)
    factors = change.factors()
    assert factors is not None
    assert factors.down.numel() + factors.up.numel() < weight.numel()
    product = factors.up.double() @ factors.down.double() * factors.scale
    torch.testing.assert_close(change.delta(weight).double().flatten(1), product, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["loha", "lokr", "lokr_full"])
def test_factors_no_smaller_than_the_delta_are_none(name: str) -> None:
    assert sample(name, (8, 6)).factors() is None


@each_large
@pytest.mark.parametrize("name", ["dora_loha", "dora_lokr"])
def test_dora_over_a_product_is_live_without_its_delta(name: str, shape: tuple[int, ...]) -> None:
    change, weight = sample(name, shape), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert isinstance(change, DoRA)
    form = change.live_form(weight)
    assert form is not None and form.gain is not None and form.factors is not None
    flat = form.factors.up @ form.factors.down * form.factors.scale + form.gain[:, None] * weight.flatten(1)
    torch.testing.assert_close(change.delta(weight).flatten(1), flat, rtol=1e-4, atol=1e-5)


def test_the_alpha_of_two_full_sides_is_not_looked_at() -> None:
    def unknowable(rank: int) -> float:
        raise AssertionError(f"asked for the scale of rank {rank}")

    leaves = {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(4, 3), "alpha": torch.tensor(torch.inf)}
    assert LoKr.from_leaves(leaves, unknowable).scale == 1.0


def test_alpha_is_divided_by_the_rank_of_the_second_side_first() -> None:
    asked: list[int] = []

    def scale(rank: int) -> float:
        asked.append(rank)
        return 1.0

    one = {"lokr_w1_a": torch.ones(2, 1), "lokr_w1_b": torch.ones(1, 2)}
    two = {"lokr_w2_a": torch.ones(4, 3), "lokr_w2_b": torch.ones(3, 3)}
    LoKr.from_leaves({**one, **two}, scale)
    LoKr.from_leaves({**one, "lokr_w2": torch.ones(4, 3)}, scale)
    assert asked == [3, 1]


def test_times_of_two_full_sides_multiplies_the_first() -> None:
    change = sample("lokr_full", (8, 6), torch.float16)
    scaled = change.times(-0.3)
    assert isinstance(scaled, LoKr) and scaled.scale == 1.0
    torch.testing.assert_close(scaled.delta(), change.delta() * -0.3)


@pytest.mark.parametrize("name", ["lokr", "lokr_full", "lokr_both", "lokr_tucker"])
@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 3, 3)], ids=["linear", "conv 3x3"])
def test_rows_of_lokr_are_whole_blocks_or_inside_one(name: str, shape: tuple[int, ...]) -> None:
    change, weight = sample(name, shape), torch.zeros(shape)  # o1 = 2, o2 = 4
    for start, stop in ((0, 4), (4, 8), (0, 8), (1, 3), (5, 8)):
        part = change.rows(start, stop)
        assert part is not None, (start, stop)
        torch.testing.assert_close(part.delta(weight[start:stop]), change.delta(weight)[start:stop])
    assert change.rows(2, 6) is None
    assert change.rows(0, 7) is None


def test_what_is_flattened_fits_any_kernel_and_what_is_not_only_its_own() -> None:
    flat, kernel = sample("lokr", (8, 6, 3, 3)), sample("lokr_full", (8, 6, 3, 3))
    assert flat.problem((8, 6, 1, 9)) is None
    assert kernel.problem((8, 6, 1, 9)) is not None


def test_lora_in_tucker_form_is_the_sum_over_both_indices_of_the_middle() -> None:
    change = sample("lora_tucker", (8, 6, 3, 3))
    assert isinstance(change, LoRA) and change.mid is not None
    expected = torch.einsum(
        "ijhw,oi,jc->ochw",
        change.mid.double(),
        change.up.double()[..., 0, 0],
        change.down.double()[..., 0, 0],
    )
    delta = change.delta(torch.zeros(8, 6, 3, 3)).double()
    torch.testing.assert_close(delta, 0.5 * expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(AdapterError, match=r"mid is \(3, 3, 3, 3\)"):
        change.delta(torch.zeros(8, 6, 1, 1))


def test_the_bias_of_up_is_scaled_as_its_product_is() -> None:
    change = LoRA(torch.ones(2, 6), torch.ones(8, 2), 0.25, bias=torch.full((8,), 2.0))
    shift = change.bias_delta(torch.zeros(8))
    assert shift is not None and torch.equal(shift, torch.full((8,), 0.5))
    halved = change.times(0.5).bias_delta()
    assert halved is not None and torch.equal(halved, torch.full((8,), 0.25))


def test_a_rank_of_1_in_tucker_form_has_factors_too() -> None:
    shape = (64, 48, 3, 3)
    w1, (w2_a, w2_b), t2 = torch.randn(8, 6), (torch.randn(1, 8), torch.randn(1, 8)), torch.randn(1, 1, 3, 3)
    change = LoKr(w1=w1, w2_a=w2_a, w2_b=w2_b, t2=t2)
    factors = change.factors()
    assert factors is not None
    product = (factors.up @ factors.down).reshape(shape)
    torch.testing.assert_close(change.delta(torch.zeros(shape)), product, rtol=1e-5, atol=1e-5)
    across = LoKr(w1=torch.randn(6, 1).T, w2=torch.randn(8, 8).T)
    assert across.delta().shape == (8, 48)
