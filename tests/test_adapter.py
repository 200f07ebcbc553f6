"""Adapters and stacks: laws of weighted sums, of identity, and of what is refused."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difflora.adapter import Adapter, AdapterMeta, Stack, Weight, as_weight, same
from difflora.errors import AdapterError
from difflora.kinds import LoRA

UNET, TEXT = (
    "unet.mid_block.attentions.0.proj_in",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
)
SHAPE = (12, 8)
BASE = torch.zeros(SHAPE)


def lora(seed: int, *, dtype: torch.dtype = torch.float32, scale: float = 0.5) -> LoRA:
    source = torch.Generator().manual_seed(seed)
    down, up = torch.randn(4, SHAPE[1], generator=source), torch.randn(SHAPE[0], 4, generator=source)
    return LoRA(down.to(dtype), up.to(dtype), scale)


def adapter(
    seed: int, paths: Sequence[str] = (UNET, TEXT), *, dtype: torch.dtype = torch.float32, scale: float = 0.5
) -> Adapter:
    changes = {path: lora(seed * 100 + index, dtype=dtype, scale=scale) for index, path in enumerate(paths)}
    return Adapter({path: (change,) for path, change in changes.items()}, AdapterMeta(name=f"adapter {seed}"))


finite = st.floats(-4, 4, allow_subnormal=False)


@given(finite)
def test_one_adapter_at_weight_w_is_w_times_its_delta(weight: float) -> None:
    one = adapter(1)
    expected = one.delta(UNET, BASE).double() * weight
    torch.testing.assert_close(
        Stack([(one, weight)]).delta(UNET, BASE).double(), expected, rtol=1e-6, atol=1e-6
    )


@given(finite, finite)
def test_a_mix_is_the_weighted_sum(first: float, second: float) -> None:
    a, b = adapter(1), adapter(2)
    expected = a.delta(UNET, BASE).double() * first + b.delta(UNET, BASE).double() * second
    mixed = Stack([(a, first), (b, second)]).delta(UNET, BASE).double()
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


def test_the_order_of_a_stack_is_irrelevant_bit_for_bit() -> None:
    entries = [(adapter(seed), weight) for seed, weight in [(1, 0.7), (2, -0.31), (3, 1.9), (4, 0.013)]]
    sums = [Stack(order).delta(UNET, BASE) for order in permutations(entries)]
    assert all(torch.equal(total, sums[0]) for total in sums)


def test_the_order_in_which_modules_are_listed_is_irrelevant() -> None:
    one = adapter(1)
    turned = Adapter(dict(reversed(list(one.modules.items()))))
    assert same(one, turned) and one.data_hash == turned.data_hash


@pytest.mark.parametrize("zero", [0.0, -0.0, Weight(0.0, 0.0)])
def test_weight_zero_is_absent_bit_for_bit(zero: float | Weight) -> None:
    a, b = adapter(1), adapter(2)
    assert torch.equal(Stack([(a, 0.7), (b, zero)]).delta(UNET, BASE), Stack([(a, 0.7)]).delta(UNET, BASE))
    assert torch.equal(Stack([(b, zero)]).delta(UNET, BASE), BASE)


def test_an_adapter_that_holds_nan_is_absent_at_weight_zero() -> None:
    broken = Adapter({UNET: (LoRA(torch.full((1, 8), math.nan), torch.ones(12, 1), 1.0),)})
    assert torch.equal(Stack([(broken, 0.0)]).delta(UNET, BASE), BASE)


def test_the_same_adapter_twice_counts_once_with_the_sum_of_weights() -> None:
    a, b = adapter(1), adapter(2)
    twice = Stack([(a, 0.25), (b, 0.4), (a, 0.5)])
    assert torch.equal(twice.delta(UNET, BASE), Stack([(a, 0.75), (b, 0.4)]).delta(UNET, BASE))
    assert len(twice) == 3 and len(twice.canonical()) == 2


def test_opposite_weights_of_one_adapter_cancel_exactly() -> None:
    a = adapter(1)
    assert torch.equal(Stack([(a, 0.37), (a, -0.37)]).delta(UNET, BASE), BASE)


def test_an_equal_copy_is_the_same_adapter() -> None:
    a, copy = adapter(1), adapter(1)
    assert len(Stack([(a, 0.5), (copy, 0.5)]).canonical()) == 1


def test_canonical_is_idempotent_and_changes_no_sum() -> None:
    stack = Stack([(adapter(2), 0.3), (adapter(1), 0.7), (adapter(2), 0.1)])
    once = stack.canonical()
    assert once.canonical().entries == once.entries
    assert torch.equal(once.delta(UNET, BASE), stack.delta(UNET, BASE))


def test_unet_and_text_weights_act_on_their_own_modules() -> None:
    a = adapter(1)
    stack = Stack([(a, Weight(unet=0.5, text=0.0))])
    assert torch.equal(stack.delta(UNET, BASE), a.delta(UNET, BASE) * 0.5)
    assert torch.equal(stack.delta(TEXT, BASE), BASE)
    assert Weight(unet=0.5, text=0.25).of(TEXT.replace("text_encoder", "text_encoder_2")) == 0.25


def test_several_kinds_on_one_module_add() -> None:
    both = Adapter({UNET: (lora(1), lora(2))})
    torch.testing.assert_close(both.delta(UNET), lora(1).delta() + lora(2).delta(), rtol=0, atol=0)
    assert torch.equal(both.delta(UNET), both.delta(UNET)), "delta must not add into the factors"


def test_a_module_that_no_adapter_changes_has_delta_zero() -> None:
    assert torch.equal(Stack([(adapter(1), 1.0)]).delta("unet.conv_in", BASE), BASE)
    assert torch.equal(Stack().delta(UNET, BASE), BASE)
    with pytest.raises(KeyError):
        adapter(1).delta("unet.conv_in")


def test_sums_are_float32_whatever_the_factors_and_the_base_are() -> None:
    half = adapter(1, dtype=torch.float16)
    total = Stack([(half, 0.3)]).delta(UNET, torch.zeros(SHAPE, dtype=torch.bfloat16))
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, half.delta(UNET) * 0.3)


def test_same_compares_tensors_and_ignores_metadata() -> None:
    a = adapter(1)
    renamed = replace(a, meta=AdapterMeta(name="other", training={"ss_steps": "5"}, file_hash="f" * 64))
    assert same(a, renamed)
    assert renamed.data_hash == "f" * 64 and a.data_hash == a.content_hash


@pytest.mark.parametrize(
    "other",
    [
        adapter(2),
        adapter(1, (UNET,)),
        adapter(1, (TEXT, UNET)),
        adapter(1, dtype=torch.float16),
        adapter(1, scale=0.25),
        Adapter(adapter(1).modules, tokens={"sks": {"text_encoder": torch.ones(1, 8)}}),
    ],
    ids=["factors", "fewer modules", "other paths", "dtype", "scale", "tokens"],
)
def test_same_sees_every_difference(other: Adapter) -> None:
    assert not same(adapter(1), other)


def test_the_hash_does_not_depend_on_memory_layout() -> None:
    (k,) = adapter(1).modules[UNET]
    assert isinstance(k, LoRA)
    strided = LoRA(k.down.T.contiguous().T, torch.stack([k.up, k.up], dim=-1)[..., 0], k.scale)
    assert not strided.down.is_contiguous() and not strided.up.is_contiguous()
    assert same(Adapter({UNET: (k,)}), Adapter({UNET: (strided,)}))


KNOWN = {
    torch.float32: "1012bfd25d5f7840",
    torch.float16: "99666999f4a2a770",
    torch.bfloat16: "139364385c0280c4",
}


@pytest.mark.parametrize(("dtype", "expected"), KNOWN.items(), ids=str)
def test_the_hash_of_known_content_never_changes(dtype: torch.dtype, expected: str) -> None:
    down, up = torch.arange(8.0).reshape(2, 4), torch.arange(6.0).reshape(3, 2)
    tokens = {"sks": {"text_encoder": torch.ones(1, 4)}}
    known = Adapter({UNET: (LoRA(down.to(dtype), up.to(dtype), 0.5),)}, tokens=tokens)
    assert known.content_hash.startswith(expected) and len(known.content_hash) == 64


def test_shapes_are_part_of_the_hash() -> None:
    zeros = [Adapter({UNET: (LoRA(torch.zeros(2, n), torch.zeros(n, 2), 1.0),)}) for n in (4, 8)]
    assert not same(*zeros)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(AdapterError, match="finite"):
        Weight(unet=bad)
    with pytest.raises(AdapterError, match="finite"):
        Stack([(adapter(1), bad)])


def test_with_weights_keeps_the_adapters_and_checks_the_number() -> None:
    stack = Stack([(adapter(1), 1.0), (adapter(2), 1.0)])
    changed = stack.with_weights([0.5, Weight(0.25, 0.0)])
    assert [weight for _, weight in changed] == [Weight(0.5, 0.5), Weight(0.25, 0.0)]
    assert [one for one, _ in changed] == [one for one, _ in stack]
    assert [weight for _, weight in stack] == [Weight(), Weight()]
    with pytest.raises(AdapterError, match="1 weights were given for a stack of 2"):
        stack.with_weights([1.0])


def test_paths_are_every_module_that_is_changed_once_and_sorted() -> None:
    assert Stack([(adapter(1, (UNET,)), 1.0), (adapter(2), 0.0)]).paths() == (TEXT, UNET)


def test_numbers_and_weights_mean_the_same() -> None:
    assert as_weight(0.7) == Weight(0.7, 0.7) == Weight(0.3, 0.3) + Weight(0.4, 0.4)
    assert as_weight(Weight(0.1, 0.2)) == Weight(0.1, 0.2)


def token(word: str, fill: float, *, name: str, text: float = 1.0) -> tuple[Adapter, Weight]:
    """An adapter of one word of two vectors, and its weight."""
    tokens = {word: {"text_encoder": torch.full((2, 4), fill)}}
    return Adapter({}, AdapterMeta(name=name), tokens), Weight(unet=1.0, text=text)


def test_a_stack_knows_the_words_of_adapters_with_a_text_weight() -> None:
    cat, dog, owl = (
        token("cat", 1, name="a"),
        token("dog", 2, name="b", text=0),
        token("owl", 3, name="c", text=-0.5),
    )
    words = Stack([owl, cat, dog]).tokens()
    assert list(words) == ["cat", "owl"]
    assert torch.equal(words["owl"]["text_encoder"], torch.full((2, 4), 3.0)), "as they are, at any weight"
    assert Stack([cat, (cat[0], Weight(0, -1))]).tokens() == {}, "weights that cancel are a weight of 0"


def test_words_meant_differently_are_an_error_unless_one_is_absent() -> None:
    one, other = token("cat", 1, name="tabby"), token("Cat", 2, name="lion")
    with pytest.raises(AdapterError, match=r"(?s)'Cat': in 'tabby' and in 'lion'.*text weight of 0"):
        Stack([one, other]).tokens()
    assert list(Stack([one, (other[0], Weight(1, 0))]).tokens()) == ["cat"]
    assert list(Stack([one, token("CAT", 1, name="copy")]).tokens()) == ["cat"]
    larger = Adapter({}, tokens={"cat": {**one[0].tokens["cat"], "text_encoder_2": torch.ones(2, 4)}})
    with pytest.raises(AdapterError):
        Stack([one, (larger, 1.0)]).tokens()
