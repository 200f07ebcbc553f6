"""GLoRA in both layouts, told apart by shape."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from difflora.kinds import GLoRA
from tests.kinds.samples import sample


def read(leaves: Mapping[str, Tensor]) -> GLoRA:
    return GLoRA.from_leaves(leaves, lambda rank: 1.5 / rank)


def of_2023(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers under the names of the first layout."""
    other = {
        "a1.weight": "a2.weight",
        "a2.weight": "a1.weight",
        "b1.weight": "b2.weight",
        "b2.weight": "b1.weight",
    }
    return {other.get(leaf, leaf): tensor for leaf, tensor in leaves.items()}


@pytest.mark.parametrize("shape", [(8, 6), (6, 6), (6, 8), (8, 8, 1, 1), (8, 6, 3, 3)])
def test_both_layouts_are_the_same_change(shape: tuple[int, ...]) -> None:
    leaves = sample("glora", shape).to_leaves()
    today, then = read(leaves), read(of_2023(leaves))
    assert all(torch.equal(tensor, then.tensors()[name]) for name, tensor in today.tensors().items())
    assert then.to_leaves().keys() == leaves.keys()
    assert torch.equal(then.to_leaves()["a1.weight"], leaves["a1.weight"])
    assert today.scale == then.scale == 0.5


def test_a_rank_of_the_layers_own_size_is_todays_layout() -> None:
    leaves = {leaf: torch.randn(4, 4) for leaf in ("a1.weight", "a2.weight", "b1.weight", "b2.weight")}
    assert read(leaves).up is leaves["b1.weight"]


def test_delta_of_a_linear_layer_is_its_formula() -> None:
    change, weight = sample("glora", (8, 6)), torch.randn(8, 6)
    assert isinstance(change, GLoRA)
    first = weight.double() @ (change.input_up.double() @ change.input_down.double())
    expected = 0.5 * (first + change.up.double() @ change.down.double())
    torch.testing.assert_close(change.delta(weight).double(), expected, rtol=1e-5, atol=1e-6)


def test_delta_of_a_convolution_mixes_the_input_channels_of_the_kernel() -> None:
    change, weight = sample("glora_tucker", (8, 6, 3, 3)), torch.randn(8, 6, 3, 3)
    assert isinstance(change, GLoRA) and change.mid is not None
    mixing = change.input_up.flatten(1) @ change.input_down.flatten(1)
    added = torch.einsum("ijhw,oi,jc->ochw", change.mid, change.up.flatten(1), change.down.flatten(1))
    expected = 0.5 * (torch.einsum("oihw,ij->ojhw", weight, mixing) + added)
    torch.testing.assert_close(change.delta(weight), expected, rtol=1e-5, atol=1e-5)


def test_beside_a_layer_without_a_kernel_it_is_one_pair_of_twice_the_rank() -> None:
    change = sample("glora", (8, 6))
    form = change.live_form(torch.randn(8, 6))
    assert form is not None and form.factors is not None and form.factors.down.shape == (6, 6)
    assert sample("glora", (8, 6, 3, 3)).live_form(torch.randn(8, 6, 3, 3)) is None
