"""Comparison on constructed subspaces, without and with a dense ΔW, and what a stack does to its adapters."""

import math

import pytest
import torch
from torch import Tensor

from difflora import Stack, Weight, compare, heat_map, interference, merge, negate, scale
from difflora.adapter import Adapter, AdapterMeta
from difflora.algebra import block_of, subspace_overlap
from difflora.algebra.changes import Pair, Site, change_of
from difflora.errors import AdapterError, NeedsBase
from difflora.families.model import Model
from difflora.kinds import Bias, Full, LoRA
from tests.algebra.adapters import CONV, LINEAR, TEXT, loras, of_kind, relative
from tests.kinds.samples import LAYER_NAMES

EYE = torch.eye(16)


def along(directions: list[int], sizes: list[float], name: str = "a") -> Adapter:
    """ΔW with those input directions, and singular values, on one module (12, 16)."""
    down = EYE[directions]
    up = EYE[:12, : len(directions)] * torch.tensor(sizes)
    return Adapter({LINEAR: (LoRA(down, up, 1.0),)}, AdapterMeta(name=name))


def test_overlap_is_the_share_of_common_directions() -> None:
    a, b = along([0, 1, 2, 3], [4.0, 3.0, 2.0, 1.0]), along([2, 5, 0], [3.0, 2.0, 1.0])
    grid = subspace_overlap(a, b, LINEAR)
    # Columns add directions 2, 5, 0; rows add 0, 1, 2, 3.
    wanted = torch.tensor([[0, 0, 1], [0, 0, 1 / 2], [1, 1 / 2, 2 / 3], [1, 1 / 2, 2 / 3]])
    assert torch.allclose(grid, wanted.double(), atol=1e-6)
    assert torch.allclose(subspace_overlap(b, a, LINEAR), grid.T, atol=1e-6)


def test_overlap_of_planes_is_the_square_of_the_cosine_of_their_angle() -> None:
    angle = 0.3
    tilted = math.cos(angle) * EYE[0] + math.sin(angle) * EYE[7]
    a = along([0], [2.0])
    b = Adapter({LINEAR: (LoRA(tilted[None], EYE[:12, :1], 1.0),)})
    assert float(subspace_overlap(a, b, LINEAR)) == pytest.approx(math.cos(angle) ** 2, abs=1e-6)
    assert compare(a, b).modules[LINEAR].overlap == pytest.approx(math.cos(angle) ** 2, abs=1e-6)


def test_an_adapter_is_like_itself_and_unlike_its_opposite() -> None:
    a = loras(1, 3)
    for other, cosine in ((a, 1.0), (negate(a)[0], -1.0), (scale(a, 0.2)[0], 1.0)):
        found = compare(a, other)
        assert found.cosine == pytest.approx(cosine, abs=1e-9) and not found.only_a and not found.only_b
        for module in found.modules.values():
            assert module.cosine == pytest.approx(cosine, abs=1e-9)
            assert module.overlap == pytest.approx(1.0, abs=1e-9)


def test_factors_and_dense_matrices_give_the_same_numbers() -> None:
    a, b = loras(1, 3), loras(2, 5)
    dense = [Adapter({path: (Full(one.delta(path)),) for path in one.modules}, one.meta) for one in (a, b)]
    wanted, got = compare(a, b), compare(*dense)
    for path, module in wanted.modules.items():
        x, y = a.delta(path).double(), b.delta(path).double()
        assert module.norm_a == pytest.approx(float(x.norm()), rel=1e-6)
        assert module.cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), abs=1e-6)
        other = got.modules[path]
        for name in ("norm_a", "norm_b", "cosine", "overlap", "rank_a", "rank_b"):
            assert getattr(other, name) == pytest.approx(getattr(module, name), abs=1e-5, rel=1e-5), name


def test_effective_rank_counts_equal_directions() -> None:
    found = compare(along([0, 1, 2], [2.0] * 3), along([0], [5.0])).modules[LINEAR]
    assert found.rank_a == pytest.approx(3.0) and found.rank_b == pytest.approx(1.0)
    uneven = compare(along([0, 1], [1.0, 0.01]), along([0], [5.0])).modules[LINEAR]
    assert 1.0 < uneven.rank_a < 1.2


def test_modules_of_one_alone_are_told_apart() -> None:
    a = loras(1, 3)
    b = Adapter({CONV: a.modules[CONV], TEXT: (Bias(torch.ones(8)),)})
    found = compare(a, b)
    assert set(found.modules) == {CONV} and set(found.only_a) == {LINEAR, TEXT} and not found.only_b
    assert found.only_a[LINEAR] == pytest.approx(float(a.delta(LINEAR).norm()), rel=1e-6)
    share = found.modules[CONV].norm_a / found.norm_a
    assert found.cosine == pytest.approx(share, rel=1e-6)
    assert set(compare(b, a).only_b) == {LINEAR, TEXT}


def test_adapters_of_other_families_are_refused() -> None:
    """Also where the modules that they change have the same names and shapes."""
    a = Adapter(loras(1, 3).modules, AdapterMeta("dots", "sd1"))
    b = Adapter(loras(2, 3).modules, AdapterMeta("neon", "sdxl"))
    message = (
        "'dots' is for sd1 and 'neon' is for sdxl: they change different models.*Give adapters of one family"
    )
    for call in (
        lambda: compare(a, b),
        lambda: subspace_overlap(a, b, LINEAR),
        lambda: interference(Stack([(a, 1.0), (b, 1.0)])),
    ):
        with pytest.raises(AdapterError, match=message):
            call()
    assert compare(a, Adapter(b.modules)).modules, "one that names no family may be of any"


def test_adapters_of_other_widths_are_refused() -> None:
    wider = Adapter({LINEAR: (LoRA(torch.ones(2, 24), torch.ones(12, 2), 1.0),)})
    for call in (lambda: compare(loras(1, 3), wider), lambda: subspace_overlap(loras(1, 3), wider, LINEAR)):
        with pytest.raises(AdapterError, match=r"to_q.*\(12, 20\) and \(12, 24\)"):
            call()
    with pytest.raises(AdapterError, match=r"to_q.*\(12, 20\) and \(12, 24\)"):
        interference(Stack([(loras(1, 3), 1.0), (wider, 1.0)]))


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_every_kind_can_be_compared(shapes_model: Model, name: str) -> None:
    a, b = of_kind(shapes_model, name, 1), of_kind(shapes_model, "lora", 2)
    found = compare(a, b, base=shapes_model)
    for path, module in found.modules.items():
        weight = shapes_model.module(path).weight
        x, y = a.delta(path, weight), b.delta(path, weight)
        assert module.norm_a == pytest.approx(float(x.norm()), rel=1e-5)
        assert module.cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), abs=1e-5)
    assert name == "bias" or found.modules


def test_what_depends_on_the_base_asks_for_it(shapes_model: Model) -> None:
    a, b = of_kind(shapes_model, "dora_out", 1), of_kind(shapes_model, "lora", 2)
    for call in (lambda: compare(a, b), lambda: compare(b, a), lambda: interference(Stack([(a, 1.0)]))):
        with pytest.raises(NeedsBase, match=r"attn1\.to_q"):
            call()


def test_low_rank_pairs_are_never_made_dense() -> None:
    change = change_of(loras(1, 3).modules[CONV], Site())
    assert isinstance(change, Pair)


def test_adapters_that_do_not_meet_all_survive() -> None:
    a, b = along([0, 1], [2.0, 1.0], "a"), along([2, 3], [1.0, 1.0], "b")
    found = interference(Stack([(a, 0.5), (b, -3.0)]))
    assert found.clash[LINEAR] == pytest.approx(0.0, abs=1e-9)
    assert found.total_survival == pytest.approx((1.0, 1.0))
    assert found.weights == (Weight(0.5, 0.5), Weight(-3.0, -3.0))


def test_adapters_against_each_other_cancel_and_get_more_weight() -> None:
    a = loras(1, 3)
    against, _ = scale(a, -0.5)
    found = interference(Stack([(a, 1.0), (against, 1.0)]))
    # ‖a − a/2‖² = 1/4 of the 5/4 that both have.
    assert found.clash == pytest.approx(dict.fromkeys(a.modules, 0.8), abs=1e-6)
    assert found.total_survival == pytest.approx((0.5, -1.0), abs=1e-6)
    assert found.weights[0].unet == pytest.approx(math.sqrt(5.0), rel=1e-6)
    twice = interference(Stack([(a, 1.0), (scale(a, 2.0)[0], 1.0)]))
    assert all(value < 0 for value in twice.clash.values())
    assert twice.total_survival == pytest.approx((3.0, 1.5), abs=1e-6)
    assert twice.weights[0].text == pytest.approx(math.sqrt(5.0 / 9.0), rel=1e-6)


def test_balanced_weights_give_the_sum_the_energy_of_its_parts() -> None:
    stack = Stack([(loras(1, 3), 0.7), (loras(2, 5), -0.4), (loras(3, 2), Weight(1.0, 0.2))])
    balanced, _ = merge(stack.with_weights(interference(stack).weights))
    for is_text in (False, True):
        paths = [path for path in stack.paths() if path.startswith("text") == is_text]
        got = sum(float(balanced.delta(path).double().square().sum()) for path in paths)
        parts = [(w.of(path) * a.delta(path)).double() for a, w in stack for path in paths]
        assert got == pytest.approx(sum(float(part.square().sum()) for part in parts), rel=1e-5)


def test_cosines_of_a_stack_are_those_of_pairs() -> None:
    a, b = loras(1, 3), loras(2, 5)
    found = interference(Stack([(a, 2.0), (b, -1.0), (a, 1.0)]))
    assert found.names == ("lora1", "lora2")
    cosine = found.cosine(CONV)
    assert torch.allclose(cosine.diagonal(), torch.ones(2).double())
    assert float(cosine[0, 1]) == pytest.approx(-compare(a, b).modules[CONV].cosine, abs=1e-9)
    wanted: Tensor = 3.0 * a.delta(CONV)
    assert float(found.products[CONV][0, 0]) == pytest.approx(float(wanted.square().sum()), rel=1e-6)
    assert relative(merge(Stack([(a, 3.0)]))[0].delta(CONV), wanted) < 1e-6


def test_a_sum_that_is_gone_keeps_its_weights() -> None:
    a = loras(1, 3)
    found = interference(Stack([(a, 1.0), (negate(a)[0], 1.0)]))
    assert found.clash[LINEAR] == pytest.approx(1.0) and found.weights[0] == Weight()


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("unet.conv_in", "IN00"),
        ("unet.down_blocks.0.resnets.1.conv1", "IN02"),
        ("unet.down_blocks.1.attentions.0.proj_in", "IN04"),
        ("unet.down_blocks.0.downsamplers.0.conv", "IN03"),
        ("unet.mid_block.attentions.0.proj_in", "MID"),
        ("unet.up_blocks.0.resnets.0.conv1", "OUT00"),
        ("unet.up_blocks.1.upsamplers.0.conv", "OUT05"),
        ("unet.up_blocks.3.attentions.2.proj_out", "OUT11"),
        ("unet.time_embedding.linear_1", "OTHER"),
        (TEXT, "TE1.00"),
        ("text_encoder_2.text_model.encoder.layers.31.mlp.fc1", "TE2.31"),
        ("text_encoder_2.text_projection", "TE2"),
        ("text_encoder_3.encoder.block.7.layer.0.SelfAttention.q", "TE3.07"),
        ("transformer.transformer_blocks.18.attn.to_q", "BLOCK18"),
        ("transformer.single_transformer_blocks.37.attn.to_q", "SINGLE37"),
    ],
)
def test_blocks_have_the_names_that_users_know(path: str, block: str) -> None:
    assert block_of(path) == block


def test_a_heat_map_has_a_colour_a_block_and_sort() -> None:
    values = {LINEAR: 0.8, CONV: -0.4, TEXT: 0.0, "unet.conv_out": 0.1}
    picture = heat_map(values, title="clash", limit=1.0)
    assert picture.mode == "RGB"
    counts = picture.getcolors(picture.width * picture.height)
    assert counts is not None
    strong = {colour for count, colour in counts if isinstance(colour, tuple) and count > 300}
    reds = [colour for colour in strong if colour[0] > colour[2] + 60]
    blues = [colour for colour in strong if colour[2] > colour[0] + 30]
    assert len(reds) == 1 and len(blues) == 1
    assert heat_map({}).size[0] > 0
