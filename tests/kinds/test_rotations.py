"""OFT and BOFT turn the weight and keep its lengths; a constraint bounds how far."""

import pytest
import torch

from difflora.kinds import BOFT, OFT, ReadyOFT
from difflora.kinds.rotation import cayley
from tests.kinds.samples import sample

LAYERS = {"linear": (8, 6), "conv 1x1": (8, 6, 1, 1), "conv 3x3": (8, 6, 3, 3)}


@pytest.mark.parametrize("shape", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("name", ["oft", "coft", "oft_diag", "boft"])
def test_the_lengths_of_input_columns_stay(name: str, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    changed = weight + sample(name, shape).delta(weight)
    assert not torch.allclose(changed, weight, atol=1e-4)
    torch.testing.assert_close(changed.norm(dim=0), weight.norm(dim=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["oft_rescaled", "boft_rescaled"])
def test_rescale_multiplies_the_rows_after_turning(name: str) -> None:
    change, weight = sample(name, (8, 6)), torch.randn(8, 6)
    assert isinstance(change, OFT | BOFT) and change.rescale is not None
    plain = type(change)(change.blocks, change.constraint)
    torch.testing.assert_close(
        weight + change.delta(weight), change.rescale * (weight + plain.delta(weight)), rtol=1e-5, atol=1e-5
    )


def test_blocks_of_zeros_change_nothing() -> None:
    weight = torch.randn(8, 6)
    assert torch.equal(OFT(torch.zeros(2, 4, 4)).delta(weight), torch.zeros(8, 6))
    assert torch.equal(BOFT(torch.zeros(3, 4, 2, 2)).delta(weight), torch.zeros(8, 6))


def test_cayley_makes_orthogonal_blocks_of_any_blocks() -> None:
    rotations = cayley(torch.randn(3, 2, 4, 4), 0.0)
    eye = torch.eye(4).expand(3, 2, 4, 4)
    torch.testing.assert_close(rotations @ rotations.transpose(-1, -2), eye, rtol=1e-5, atol=1e-5)


def test_the_constraint_times_the_rows_bounds_the_generator_of_all_blocks() -> None:
    blocks = torch.randn(2, 4, 4)
    skew = blocks - blocks.transpose(1, 2)
    held = skew * (0.01 * 8 / skew.norm()) / 2  # B − Bᵀ of a skew B is twice B
    weight = torch.randn(8, 6)
    torch.testing.assert_close(OFT(blocks, 0.01).delta(weight), OFT(held).delta(weight), rtol=1e-4, atol=1e-6)
    assert torch.equal(OFT(blocks, 1e6).delta(weight), OFT(blocks).delta(weight))


def test_a_block_is_turned_by_the_transpose_of_its_rotation() -> None:
    blocks, weight = torch.randn(2, 4, 4), torch.randn(8, 6)
    rotations = cayley(blocks, 0.0)
    expected = torch.cat([rotations[0].T @ weight[:4], rotations[1].T @ weight[4:]])
    torch.testing.assert_close(weight + OFT(blocks).delta(weight), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight + ReadyOFT(rotations).delta(weight), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("constraint", [0.0, 1e6, 0.02], ids=["none", "not-reached", "holding"])
@pytest.mark.parametrize("is_butterfly", [False, True], ids=["oft", "boft"])
def test_rows_are_whole_blocks_with_the_constraint_in_them(is_butterfly: bool, constraint: float) -> None:
    blocks = torch.randn((2, 8, 2, 2) if is_butterfly else (4, 4, 4))
    kind = (BOFT if is_butterfly else OFT)(blocks, constraint, torch.rand(16, 1) + 0.5)
    weight = torch.randn(16, 6)
    part = kind.rows(4, 12)
    assert part is not None and part.constraint == 0.0
    torch.testing.assert_close(part.delta(weight[4:12]), kind.delta(weight)[4:12], rtol=1e-6, atol=1e-6)
    if constraint != 0.02:
        own = blocks[:, 2:6] if is_butterfly else blocks[1:3]
        assert torch.equal(part.blocks, own), "and their numbers are the same"
    assert kind.rows(2, 12) is None and kind.rows(4, 10) is None


def test_the_alpha_of_rotations_is_their_constraint_and_the_scale_is_not_asked() -> None:
    def unknowable(rank: int) -> float:
        raise AssertionError(f"asked for the scale of rank {rank}")

    leaves = {"oft_blocks": torch.zeros(2, 4, 4), "alpha": torch.tensor(0.25)}
    assert OFT.from_leaves(leaves, unknowable).constraint == 0.25
    assert BOFT.from_leaves({"oft_blocks": torch.zeros(1, 2, 4, 4)}, unknowable).constraint == 0.0
