"""What contradicts itself is refused by name; whatever the leaves are, nothing but AdapterError is raised."""

import math
import random
from collections.abc import Mapping

import pytest
import torch

from difflora.errors import AdapterError, NeedsBase
from difflora.kinds import BOFT, IA3, KINDS, OFT, DoRA, GLoRA, Kind, LoHa, LoKr, LoRA, ReadyOFT, Replace
from tests.kinds.samples import LAYER_NAMES, NORM_NAMES, sample

Shapes = Mapping[str, tuple[int, ...]]

HADA = {"hada_w1_a": (8, 3), "hada_w1_b": (3, 6), "hada_w2_a": (8, 3), "hada_w2_b": (3, 6)}
LORA = {"lora_down.weight": (3, 6), "lora_up.weight": (8, 3)}
GLORA = {"a1.weight": (6, 3), "a2.weight": (3, 6), "b1.weight": (8, 3), "b2.weight": (3, 6)}


def build(kind: type[Kind], shapes: Shapes) -> Kind:
    return kind.from_leaves(
        {leaf: torch.zeros(shape) for leaf, shape in shapes.items()}, lambda rank: 1.0 / rank
    )


CONTRADICTIONS: list[tuple[type[Kind], Shapes, str]] = [
    (LoRA, {"lora_up.weight": (8, 3)}, r"lora_down\.weight missing"),
    (LoRA, {"lora_up.bias": (8,)}, r"lora_down\.weight and lora_up\.weight missing"),
    (LoRA, {**LORA, "lora_up.bias": (7,)}, r"bias is \(7,\).*expected \(8,\)"),
    (LoRA, {**LORA, "lora_mid.weight": (3, 4, 3, 3)}, r"mid is \(3, 4, 3, 3\).*expected \(3, 3, kh, kw\)"),
    (LoRA, {**LORA, "lora_mid.weight": (3, 3)}, r"mid is \(3, 3\)"),
    (
        LoRA,
        {"lora_down.weight": (3, 6, 3, 3), "lora_up.weight": (8, 3, 1, 1), "lora_mid.weight": (3, 3, 3, 3)},
        r"down is \(3, 6, 3, 3\) beside mid",
    ),
    (LoHa, {leaf: HADA[leaf] for leaf in ("hada_w1_a", "hada_w2_b")}, "hada_w1_b and hada_w2_a missing"),
    (LoHa, {**HADA, "hada_w1_b": (2, 6)}, r"hada_w1_a is \(8, 3\) and hada_w1_b is \(2, 6\)"),
    (LoHa, {**HADA, "hada_w2_b": (3, 7)}, r"halves are \(8, 6\) and \(8, 7\)"),
    (LoHa, {**HADA, "hada_t1": (3, 3, 3, 3)}, "only one of hada_t1 and hada_t2"),
    (LoHa, {**HADA, "hada_t1": (3, 3, 3, 3), "hada_t2": (3, 3, 3, 3)}, r"hada_t1 is .* \(rank, out\)"),
    (LoRA, {"lora_down.weight": (0, 6), "lora_up.weight": (8, 0)}, "rank 0"),
    (LoHa, {**HADA, "hada_w1_a": (8, 0), "hada_w1_b": (0, 6)}, "rank 0"),
    (LoKr, {"lokr_w1": (2, 2)}, "lokr_w2_a and lokr_w2_b missing"),
    (LoKr, {"lokr_w1": (2, 2), "lokr_w2_a": (4, 3)}, "lokr_w2_b missing"),
    (LoKr, {"lokr_w1": (2, 2), "lokr_w1_a": (2, 1), "lokr_w2": (4, 3)}, "lokr_w1 is there in full and decom"),
    (LoKr, {"lokr_w1": (2, 2), "lokr_w2_a": (4, 3), "lokr_w2_b": (2, 3)}, "expected one rank"),
    (LoKr, {"lokr_w1": (2, 2, 3, 3), "lokr_w2": (4, 3)}, r"lokr_w1 is \(2, 2, 3, 3\); expected \(o1, i1\)"),
    (LoKr, {"lokr_w1": (2, 2), "lokr_w2_a": (4, 3), "lokr_w2_b": (3, 3), "lokr_t2": (3, 3)}, "lokr_t2 is"),
    (DoRA, {"dora_scale": (8, 1)}, "without the factors"),
    (DoRA, {**LORA, "dora_scale": ()}, r"dora_scale is \(\)"),
    (DoRA, {**LORA, "dora_scale": (6, 1)}, r"dora_scale is \(6, 1\).*\(8, 1\).*\(1, 6\)"),
    (DoRA, {**LORA, "dora_scale": (1, 8)}, r"dora_scale is \(1, 8\)"),
    (DoRA, {**LORA, "dora_scale": (8, 6)}, r"dora_scale is \(8, 6\)"),
    (GLoRA, {leaf: GLORA[leaf] for leaf in ("a1.weight", "b1.weight")}, r"a2\.weight and b2\.weight missing"),
    (GLoRA, {**GLORA, "b1.weight": (8, 4)}, r"expected \(in, rank\)"),
    (GLoRA, {"a1.weight": (6, 0), "a2.weight": (0, 6), "b1.weight": (8, 0), "b2.weight": (0, 6)}, "rank 0"),
    (GLoRA, {**GLORA, "a1.weight": (5, 3)}, r"expected \(in, rank\)"),
    (GLoRA, {**GLORA, "b2.weight": (3, 7)}, "over 6 and 7 inputs"),
    (IA3, {"on_input": ()}, "weight missing"),
    (IA3, {"weight": (8,), "on_input": (2,)}, r"on_input has the shape \(2,\)"),
    (IA3, {"weight": (8, 6), "on_input": ()}, r"weight is \(8, 6\)"),
    (OFT, {"oft_blocks": (2, 4, 3)}, r"oft_blocks is \(2, 4, 3\); expected \(blocks, n, n\)"),
    (OFT, {"oft_blocks": (2, 4, 4), "rescale": (7, 1)}, r"rescale is \(7, 1\); expected \(8, 1\)"),
    (OFT, {"oft_blocks": (2, 4, 4), "alpha": (2,)}, r"alpha has the shape \(2,\)"),
    (ReadyOFT, {"oft_diag": (8, 8)}, r"oft_diag is \(8, 8\)"),
    (BOFT, {"oft_blocks": (1, 2, 3, 3)}, "even b"),
    (BOFT, {"oft_blocks": (3, 2, 4, 4)}, "8 rows have no stage 3"),
    (Replace, {"set_weight": (8, 6), "set_bias": (6,)}, r"set_bias is \(6,\)"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "shapes", "message"), CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_with_the_shapes(
    kind: type[Kind], shapes: Shapes, message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        build(kind, shapes)


@pytest.mark.parametrize("value", [0.5, math.nan, math.inf])
def test_on_input_is_0_or_1(value: float) -> None:
    with pytest.raises(AdapterError, match="on_input"):
        IA3.from_leaves({"weight": torch.ones(8), "on_input": torch.tensor(value)}, lambda rank: 1.0)


def test_a_lokr_of_two_full_sides_has_no_place_for_a_scale() -> None:
    with pytest.raises(AdapterError, match="Multiply it into w1"):
        LoKr(scale=0.5, w1=torch.ones(2, 2), w2=torch.ones(4, 3))


def test_a_replaced_bias_needs_the_one_it_replaces() -> None:
    with pytest.raises(NeedsBase, match="bias"):
        Replace(bias=torch.ones(8)).bias_delta()


LEAVES = sorted(
    {leaf for name in LAYER_NAMES for leaf in sample(name, (8, 6, 3, 3)).to_leaves()}
    | {leaf for name in NORM_NAMES for leaf in sample(name, (8,)).to_leaves()}
    | {"set_bias", "lora_up.bias"}
)
SIZES = (0, 1, 2, 3, 6, 8)


@pytest.mark.parametrize("seed", range(6))
def test_no_leaves_of_any_shape_raise_anything_else(seed: int) -> None:
    """Random shapes for random leaves, and valid leaves with one made another: read, or refused."""
    rng = random.Random(seed)
    read = refused = 0
    for _ in range(150):
        if rng.random() < 0.5:
            shapes = {leaf: any_shape(rng) for leaf in rng.sample(LEAVES, rng.randint(1, 8))}
        else:
            leaves = sample(rng.choice(LAYER_NAMES), rng.choice([(8, 6), (8, 6, 3, 3)])).to_leaves()
            shapes = {leaf: tuple(tensor.shape) for leaf, tensor in leaves.items()}
            shapes[rng.choice(sorted(shapes))] = any_shape(rng)
        for kind in KINDS:
            if claimed := kind.claim(shapes):
                try:
                    use(build(kind, {leaf: shapes[leaf] for leaf in claimed}))
                    read += 1
                except AdapterError as error:
                    assert str(error)
                    refused += 1
    assert read > 20 and refused > 20


def any_shape(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.choice(SIZES) for _ in range(rng.randint(0, 5)))


def use(change: Kind) -> None:
    """Everything that can be asked of a kind that was read."""
    weight = torch.ones(8, 6, 3, 3)
    if change.problem((8, 6, 3, 3)) is None:
        assert change.delta(weight).shape == weight.shape
        change.live_form(weight)
        change.rows(0, 4)
    for shape in ((), (8,), (8, 6)):
        change.problem(shape)
    assert set(change.to_leaves()) and change.tensors()
    change.factors()
    change.times(0.5)
