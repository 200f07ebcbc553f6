"""Laws of merging: the sum is exact for every kind, in any order, and says what it lost."""

from itertools import product
from pathlib import Path

import pytest
import torch

from difflora import Stack, Weight, merge, negate, same, scale
from difflora.adapter import Adapter, AdapterMeta
from difflora.apply import applied
from difflora.apply.merged import bias_change
from difflora.errors import AdapterError, ConfigError, FitError, NeedsBase
from difflora.families.model import Model
from difflora.formats import read, write
from difflora.kinds import Full, LoRA, Norm
from tests.algebra.adapters import CONV, LINEAR, NORM, TEXT, loras, of_kind, relative
from tests.kinds.samples import LAYER_NAMES, MAKERS, sample

NEED_BASE = [name for name in MAKERS if sample(name, (8,) if name[:4] == "norm" else (8, 6)).needs_weight]


@pytest.mark.parametrize("name", MAKERS)
def test_a_merge_of_any_kind_with_a_lora_is_the_stack(shapes_model: Model, name: str) -> None:
    other = of_kind(shapes_model, "norm_bias" if name.startswith("norm") else "lora", 7)
    stack = Stack([(of_kind(shapes_model, name, 1), 0.7), (other, Weight(unet=-0.4, text=1.3))])
    merged, report = merge(stack, base=shapes_model)
    _require_equal(shapes_model, merged, stack)
    assert report.exact


@pytest.mark.parametrize(
    ("name", "other"), list(product(["loha", "lokr", "dora_out", "full_bias"], LAYER_NAMES))
)
def test_a_merge_of_two_kinds_is_the_stack(shapes_model: Model, name: str, other: str) -> None:
    stack = Stack([(of_kind(shapes_model, name, 1), 0.7), (of_kind(shapes_model, other, 2), -1.1)])
    merged, _ = merge(stack, base=shapes_model)
    _require_equal(shapes_model, merged, stack)


@pytest.mark.parametrize(("name", "other"), list(product(["lora", "loha", "full_bias"], MAKERS)))
def test_the_kinds_of_a_module_have_room_in_one_file(shapes_model: Model, name: str, other: str) -> None:
    stack = Stack([(of_kind(shapes_model, name, 1), 0.7), (of_kind(shapes_model, other, 2), -1.1)])
    for path, kinds in merge(stack, base=shapes_model)[0].modules.items():
        assert sum(kind.name != "bias" for kind in kinds) <= 1, "peers read one change of a weight"
        taken: dict[str, torch.Tensor] = {}
        for kind in kinds:
            for leaf, tensor in kind.to_leaves().items():
                assert leaf not in taken or torch.allclose(tensor, taken[leaf]), (path, leaf)
                taken[leaf] = tensor


def _require_equal(model: Model, merged: Adapter, stack: Stack) -> None:
    alone = Stack([(merged, 1.0)])
    for path in stack.paths():
        weight, bias = model.module(path).weight, model.module(path)._parameters.get("bias")
        assert relative(merged.delta(path, weight), stack.delta(path, weight)) < 1e-6, path
        wanted, got = (bias_change(one, path, bias) for one in (stack, alone))
        assert (wanted is None) == (got is None), path
        if wanted is not None and got is not None:
            assert relative(got, wanted) < 1e-6, path


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_merged_with_nothing_is_itself(shapes_model: Model, name: str, dtype: torch.dtype) -> None:
    a, b = of_kind(shapes_model, name, 1, dtype=dtype), of_kind(shapes_model, name, 2, dtype=dtype)
    assert same(merge(Stack([(a, 1.0), (b, 0.0)]))[0], a)
    assert same(merge(Stack([(b, -0.0), (a, 1.0)]))[0], a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_ranks_signs_and_number_formats_add_exactly(dtype: torch.dtype) -> None:
    stack = Stack([(loras(1, 3, dtype=dtype), 0.7), (loras(2, 5), -0.35), (loras(3, 1, scale=2.0), 1.9)])
    merged, report = merge(stack)
    for path in stack.paths():
        wanted = sum(weight.of(path) * a.delta(path).double() for a, weight in stack)
        assert isinstance(wanted, torch.Tensor)
        assert relative(merged.delta(path), wanted) < 1e-6
    assert report.ranks == {CONV: 9, LINEAR: 9, TEXT: 8 + 1}


def test_half_precision_stays_whatever_the_weights_and_what_they_multiply_is_exact() -> None:
    a, b = (loras(seed, 2, dtype=torch.float16) for seed in (1, 2))
    for weights in ((0.5, -0.5), (0.5, 0.4)):
        merged, _ = merge(Stack([(a, weights[0]), (b, weights[1])]))
        (kind,) = merged.modules[LINEAR]
        assert isinstance(kind, LoRA) and kind.up.dtype == kind.down.dtype == torch.float16
        assert (kind.gains is None) == (weights == (0.5, -0.5))
        wanted = weights[0] * a.delta(LINEAR) + weights[1] * b.delta(LINEAR)
        assert relative(kind.delta(), wanted) < 1e-6
        twice, _ = merge(Stack([(merged, 0.3), (b, 0.9)]))
        assert relative(twice.delta(LINEAR), 0.3 * wanted + 0.9 * b.delta(LINEAR)) < 1e-6


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_what_half_precision_weighted_is_written_without_rounding(tmp_path: Path, layout: str) -> None:
    a, b = (loras(seed, 2, dtype=torch.float16) for seed in (1, 2))
    merged, _ = merge(Stack([(a, 0.5), (b, 0.4)]))
    target = tmp_path / ("folder" if layout == "peft" else "merged.safetensors")
    stored = read(write(merged, target, format=layout).path)
    for path in merged.modules:
        assert relative(stored.delta(path), merged.delta(path)) < 1e-6


@pytest.mark.parametrize("method", ["add", "average", "ties", "dare", "magnitude"])
def test_the_order_does_not_matter(method: str) -> None:
    entries = [(loras(1, 3), 0.7), (loras(2, 5), -0.4), (loras(3, 2), Weight(unet=1.0, text=0.2))]
    first, _ = merge(Stack(entries), method=method)
    assert same(merge(Stack(entries[::-1]), method=method)[0], first)


def test_the_same_adapter_twice_counts_once_with_both_weights() -> None:
    a = loras(1, 3)
    assert same(merge(Stack([(a, 0.25), (a, 0.75)]))[0], a)


@pytest.mark.parametrize("name", MAKERS)
def test_negating_twice_changes_nothing(shapes_model: Model, name: str) -> None:
    a = of_kind(shapes_model, name, 1)
    once, _ = negate(a, base=shapes_model)
    twice, _ = negate(once, base=shapes_model)
    for path in a.modules:
        weight = shapes_model.module(path).weight
        assert relative(once.delta(path, weight), -a.delta(path, weight)) < 1e-6
        assert relative(twice.delta(path, weight), a.delta(path, weight)) < 1e-6


def test_scaling_is_the_weight_of_a_stack() -> None:
    a = loras(1, 3)
    scaled, report = scale(a, Weight(unet=0.3, text=-2.0))
    for path in a.modules:
        assert relative(scaled.delta(path), Weight(0.3, -2.0).of(path) * a.delta(path)) < 1e-6
    assert report.exact and report.ranks == dict.fromkeys(a.modules, 3)
    assert same(scale(a, 1.0)[0], a)


@torch.no_grad()
def test_a_merged_adapter_live_is_the_stack_merged(shapes_model: Model) -> None:
    stack = Stack([(of_kind(shapes_model, name, i), 0.2) for i, name in enumerate(("lora", "loha", "full"))])
    merged, _ = merge(stack)
    x = torch.randn(2, 10, shapes_model.shapes()[LINEAR][1])
    base = shapes_model.module(LINEAR)(x)
    with applied(shapes_model, stack, mode="merged"):
        wanted = shapes_model.module(LINEAR)(x)
    with applied(shapes_model, Stack([(merged, 1.0)]), mode="live"):
        got = shapes_model.module(LINEAR)(x)
    assert relative(got - base, wanted - base) < 1e-5


@pytest.mark.parametrize("name", ["dora_out", "oft", "boft", "replace"])
def test_what_depends_on_the_base_asks_for_it_by_module(shapes_model: Model, name: str) -> None:
    stack = Stack([(of_kind(shapes_model, name, 1), 0.7), (of_kind(shapes_model, "lora", 2), 1.0)])
    with pytest.raises(NeedsBase) as caught:
        merge(stack)
    assert all(path in str(caught.value) for path in (LINEAR, CONV, TEXT))


def test_what_has_exact_multiples_needs_a_base_beside_others_alone(shapes_model: Model) -> None:
    a, lora = of_kind(shapes_model, "ia3_out", 1), of_kind(shapes_model, "lora", 2)
    merged, _ = merge(Stack([(a, 0.5), (of_kind(shapes_model, "bias", 2), 1.0)]))
    assert [kind.name for kind in merged.modules[CONV]] == ["ia3", "bias"]
    with pytest.raises(NeedsBase, match=r"attn1\.to_q"):
        merge(Stack([(a, 0.5), (lora, 1.0)]))
    merged, _ = merge(Stack([(a, 0.5), (lora, 1.0)]), base=shapes_model)
    assert [kind.name for kind in merged.modules[LINEAR]] == ["full"]


def test_what_does_not_fit_the_base_is_refused(shapes_model: Model) -> None:
    with pytest.raises(FitError, match="does not fit"):
        merge(Stack([(loras(1, 3), 1.0)]), base=shapes_model)


def test_rank_gives_the_best_of_the_sum_and_its_error() -> None:
    stack = Stack([(loras(1, 3), 0.7), (loras(2, 5), -0.35)])
    exact, _ = merge(stack)
    merged, report = merge(stack, rank=4)
    for path in stack.paths():
        singular = torch.linalg.svdvals(exact.delta(path).double())
        tail = float(singular[4:].norm() / singular.norm())
        assert report.error[path] == pytest.approx(tail, abs=1e-6)
        assert relative(merged.delta(path), exact.delta(path)) == pytest.approx(tail, abs=1e-6)
        assert report.ranks[path] == 4
    assert 0 < report.total_error < 1 and not report.exact


def test_norms_and_biases_add() -> None:
    a, b = (Adapter({NORM: (sample("norm_bias", (6,), seed=seed),)}) for seed in (1, 2))
    (kind,) = merge(Stack([(a, 0.5), (b, -2.0)]))[0].modules[NORM]
    (one,), (two,) = a.modules[NORM], b.modules[NORM]
    assert isinstance(kind, Norm) and isinstance(one, Norm) and isinstance(two, Norm)
    assert kind.weight is not None and one.weight is not None and two.weight is not None
    assert torch.allclose(kind.weight, 0.5 * one.weight - 2.0 * two.weight)


def test_a_norm_has_one_change_whatever_it_is_made_of() -> None:
    whole, part = Full(torch.ones(6), torch.ones(6)), Norm(torch.ones(6) * 2)
    stack = Stack([(Adapter({NORM: (whole,)}), 0.5), (Adapter({NORM: (part,)}), 2.0)])
    (kind,) = merge(stack)[0].modules[NORM]
    assert isinstance(kind, Norm) and kind.weight is not None and kind.bias is not None
    assert kind.weight.tolist() == [4.5] * 6 and kind.bias.tolist() == [0.5] * 6


def test_average_divides_by_the_sum_of_the_weights() -> None:
    a, b = loras(1, 3), loras(2, 5)
    merged, _ = merge(Stack([(a, 3.0), (b, Weight(unet=1.0, text=0.0))]), method="average")
    assert relative(merged.delta(CONV), 0.75 * a.delta(CONV) + 0.25 * b.delta(CONV)) < 1e-6
    assert relative(merged.delta(TEXT), a.delta(TEXT)) < 1e-6
    with pytest.raises(AdapterError, match="no average"):
        merge(Stack([(a, 1.0), (b, -1.0)]), method="average")


def test_block_weights_by_name_expression_and_component() -> None:
    a, b = loras(1, 3), loras(2, 5)
    stack = Stack([(a, 1.0), (b, 0.5)])
    merged, _ = merge(stack, block_weights={"attn1": 0.5, "IN01": 2.0, "BASE": 0.0})
    assert TEXT not in merged.modules
    assert relative(merged.delta(LINEAR), 0.5 * a.delta(LINEAR) + 0.25 * b.delta(LINEAR)) < 1e-6
    assert relative(merged.delta(CONV), 2.0 * a.delta(CONV) + b.delta(CONV)) < 1e-6
    each, _ = merge(stack, block_weights=[{}, {"IN01": 0.0}])
    assert same(Adapter({CONV: each.modules[CONV]}), Adapter({CONV: a.modules[CONV]}))
    with pytest.raises(AdapterError, match=r"'\('.*no regular expression(.|\n)*IN07(.|\n)*IN01, TE1\.00"):
        merge(stack, block_weights={"IN07": 0.5, "(": 1.0})
    with pytest.raises(AdapterError, match="3 tables"):
        merge(stack, block_weights=[{}, {}, {}])


def test_words_names_and_triggers_come_along() -> None:
    vectors = {"text_encoder": torch.ones(1, 8)}
    a = Adapter(loras(1, 2).modules, AdapterMeta(name="one", family="sd1", base="v1", trigger="sks"))
    b = Adapter(loras(2, 2).modules, AdapterMeta(name="two", family="sd1", base="v1"), {"toy": vectors})
    merged, _ = merge(Stack([(a, 1.0), (b, 1.0)]))
    assert merged.meta == AdapterMeta(name="one+two", family="sd1", base="v1", trigger="sks")
    assert set(merged.tokens) == {"toy"}


def test_what_cannot_be_merged_is_refused() -> None:
    a = loras(1, 3)
    xl = Adapter(loras(2, 3).modules, AdapterMeta(family="sdxl"))
    with pytest.raises(AdapterError, match="sd1 and sdxl"):
        merge(Stack([(a, 1.0), (xl, 1.0)]))
    with pytest.raises(AdapterError, match="every weight"):
        merge(Stack([(a, 0.0)]))
    with pytest.raises(ConfigError, match=r"'sum'.*add, average, ties, dare, magnitude"):
        merge(Stack([(a, 1.0)]), method="sum")
    wider = Adapter({LINEAR: (LoRA(torch.ones(2, 24), torch.ones(12, 2), 1.0),)})
    with pytest.raises(AdapterError, match="different layers"):
        merge(Stack([(a, 1.0), (wider, 1.0)]))
    taller = Adapter({LINEAR: (Full(torch.ones(13, 20)),)})
    full = Adapter({LINEAR: (Full(torch.ones(12, 20)),)})
    with pytest.raises(AdapterError, match="different layers"):
        merge(Stack([(full, 1.0), (taller, 1.0)]))
