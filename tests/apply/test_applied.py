"""Laws of applying a stack: what is merged equals what is live, and the base comes back bit for bit."""

import random
from contextlib import ExitStack, suppress

import pytest
import torch
from torch import Tensor

from difflora.adapter import Adapter, Stack, Weight
from difflora.apply import Live, Merged, applied, attach, default_mode, mode_of
from difflora.errors import AdapterError, ApplyError, FitError
from difflora.families.model import Model
from difflora.kinds import Full, LoRA
from tests.apply.scenes import PATHS, UNET, adapter, input_shape, output, relative


def test_live_equals_merged_equals_weights_plus_delta(model: Model) -> None:
    stack = Stack([(adapter(model, 1), 0.7), (adapter(model, 2, rank=5), Weight(unet=-0.4, text=1.3))])
    base = output(model)
    with applied(model, stack, mode="merged"):
        merged = output(model)
        weight = model.module(UNET).weight
        pristine = model.pristine[f"{UNET}.weight"]
        wanted = pristine + 0.7 * stack.entries[0][0].delta(UNET) - 0.4 * stack.entries[1][0].delta(UNET)
        assert torch.allclose(weight, wanted, atol=1e-6)
    with applied(model, stack, mode="live"):
        live = output(model)
    assert (merged - base).norm() > 0.05 * base.norm()
    assert relative(live, merged, base) < 1e-5
    assert torch.equal(output(model), base)


@torch.no_grad()
def test_each_layer_live_equals_merged(model: Model) -> None:
    stack = Stack([(adapter(model, 5), 1.5), (adapter(model, 6), -0.7)])
    inputs = {path: torch.randn(2, *input_shape(model, path)) for path in PATHS}
    base = {path: model.module(path)(x) for path, x in inputs.items()}
    with applied(model, stack, mode="merged"):
        merged = {path: model.module(path)(x) for path, x in inputs.items()}
    with applied(model, stack, mode="live"):
        live = {path: model.module(path)(x) for path, x in inputs.items()}
    for path in PATHS:
        assert relative(live[path], merged[path], base[path]) < 1e-5, path


def test_images_of_a_batch_have_their_own_mix(model: Model) -> None:
    first, second = adapter(model, 1), adapter(model, 2)
    mixes = [[0.0, 0.9], [1.2, -0.3]]
    stack = Stack([(first, 1.0), (second, 1.0)])
    with applied(model, stack, mode="live") as mix:
        assert isinstance(mix, Live)
        mix.set_image_weights(mixes)
        together = output(model, rows=4)  # rows as under guidance: [image 0, image 1, image 0, image 1]
        alone = []
        for weights in mixes:
            mix.set_weights(weights)
            alone.append(output(model, rows=4))
    for row in range(4):
        assert torch.allclose(together[row], alone[row % 2][row], atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def test_rows_that_do_not_divide_are_refused(model: Model) -> None:
    with applied(model, Stack([(adapter(model, 1), 1.0)]), mode="live") as mix:
        assert isinstance(mix, Live)
        mix.set_image_weights([[0.1], [0.2], [0.3]])
        with pytest.raises(ApplyError, match="3 images have their own mix"):
            output(model)


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_weights_change_without_attaching_anew(model: Model, mode) -> None:
    stack = Stack([(adapter(model, 1), 0.2), (adapter(model, 2), 0.3)])
    with applied(model, stack.with_weights([1.1, -0.5]), mode=mode):
        wanted = output(model)
    with applied(model, stack, mode=mode) as mix:
        forward = model.module(UNET).forward
        mix.set_weights([1.1, -0.5])
        assert model.module(UNET).forward == forward
        assert torch.equal(output(model), wanted)
        mix.set_weights([0, 0])
        base = output(model)
    assert torch.equal(base, output(model))


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_weight_zero_equals_absent_and_order_does_not_matter(model: Model, mode) -> None:
    a, b, c = (adapter(model, seed) for seed in (1, 2, 3))
    with applied(model, Stack([(a, 0.6), (b, 0.8)]), mode=mode):
        wanted = output(model)
    for entries in ([(b, 0.8), (c, 0.0), (a, 0.6)], [(a, 0.25), (b, 0.8), (a, 0.35)]):
        with applied(model, Stack(entries), mode=mode):
            assert torch.equal(output(model), wanted)


def test_live_inside_live_adds_and_inside_merged_raises(model: Model) -> None:
    a, b = Stack([(adapter(model, 1), 0.6)]), Stack([(adapter(model, 2), 0.8)])
    base = output(model)
    with applied(model, Stack([*a, *b]), mode="live"):
        wanted = output(model)
    with applied(model, a, mode="live"), applied(model, b, mode="live"):
        assert relative(output(model), wanted, base) < 1e-5
    for mode in ("live", "merged"):
        with (
            applied(model, a, mode="merged"),
            pytest.raises(ApplyError, match="merged stack already"),
            applied(model, b, mode=mode),
        ):
            pass
    assert torch.equal(output(model), base)


@pytest.mark.parametrize("rank", [3, 64])
def test_merged_inside_live_raises_and_the_default_is_live(model: Model, rank: int) -> None:
    """A live weight in float32 may take the place of the base's, which would hide what is merged into it."""
    a, b = Stack([(adapter(model, 1, rank=rank), 0.3)]), Stack([(adapter(model, 2, rank=rank), 0.4)])
    base = output(model)
    with applied(model, Stack([*a, *b]), mode="merged"):
        wanted = output(model)
    with applied(model, a, mode="live"):
        with pytest.raises(ApplyError, match=r"live stack.*mode='live'"), applied(model, b, mode="merged"):
            pass
        assert default_mode(model) == "live"
        with applied(model, b) as mix:
            assert mode_of(mix) == "live" and relative(output(model), wanted, base) < 1e-5
        with applied(model, Stack(), mode="merged"):
            pass
    assert default_mode(model) == "merged" and torch.equal(output(model), base)


def test_the_default_is_merged_where_live_takes_too_much_memory(shapes_folder) -> None:
    from difflora.families import load

    model = load(shapes_folder, device="cpu", dtype="bfloat16")
    dense = Stack([(Adapter({UNET: (Full(torch.ones(64, 64)),)}), 0.5)])
    with applied(model, dense) as mix:
        assert mode_of(mix) == "live"
    with applied(model, dense, dense_limit=64) as mix:
        assert mode_of(mix) == "merged" and f"{UNET}.weight" in model.pristine
    with (
        pytest.raises(ApplyError, match="--mode merged"),
        applied(model, dense, mode="live", dense_limit=64),
    ):
        pass
    with (
        applied(model, dense, mode="live"),
        pytest.raises(ApplyError, match="--mode merged"),
        applied(model, dense, dense_limit=64),
    ):
        pass


def test_attaching_changes_neither_tree_nor_names(model: Model) -> None:
    unet = model.pipeline.unet
    names, tree = list(unet.state_dict()), [name for name, _ in unet.named_modules()]
    with applied(model, Stack([(adapter(model, 1), 1.0)]), mode="live"):
        assert list(unet.state_dict()) == names
        assert [name for name, _ in unet.named_modules()] == tree
    assert "forward" not in model.module(UNET).__dict__


def test_an_adapter_that_does_not_fit_is_refused_and_nothing_is_applied(model: Model) -> None:
    wrong = Adapter(
        {
            UNET: (LoRA(torch.ones(2, 7), torch.ones(64, 2), 1.0),),
            "unet.nowhere": (LoRA(torch.ones(1, 1), torch.ones(1, 1), 1.0),),
        }
    )
    with pytest.raises(FitError) as caught, applied(model, Stack([(wrong, 1.0)])):
        pass
    assert (
        "2 of 2 modules" in str(caught.value)
        and "(2, 7)" in str(caught.value)
        and "unet.nowhere" in str(caught.value)
    )
    with pytest.raises(FitError, match="no module at all"), applied(model, Stack([(Adapter({}), 1.0)])):
        pass


def test_a_wrong_number_of_weights_changes_nothing(model: Model) -> None:
    with applied(model, Stack([(adapter(model, 1), 1.0)]), mode="live") as mix:
        before = output(model)
        with pytest.raises(AdapterError, match="2 weights were given for a stack of 1"):
            mix.set_weights([1, 2])
        assert torch.equal(output(model), before)


def test_merging_into_bf16_reports_what_rounding_lost(shapes_folder) -> None:
    from difflora.families import load

    model = load(shapes_folder, device="cpu", dtype="bfloat16")
    with applied(model, Stack([(adapter(model, 1), 0.05)]), mode="merged") as mix:
        assert isinstance(mix, Merged)
        assert 0.01 < mix.rounding < 1.0
    with applied(model, Stack([(adapter(model, 1), 0.05)])) as mix:
        assert isinstance(mix, Live)


def test_an_error_at_any_layer_leaves_the_base_as_it_was(model: Model) -> None:
    before = model.checksum()
    for failing in PATHS:

        class Broken(LoRA):
            def delta(self, weight: Tensor | None = None) -> Tensor:
                raise MemoryError("out of memory")

        good = adapter(model, 1)
        (kind,) = good.modules[failing]
        assert isinstance(kind, LoRA)
        bad = Adapter({**good.modules, failing: (Broken(kind.down, kind.up, 1.0),)})
        with pytest.raises(MemoryError), applied(model, Stack([(bad, 1.0)]), mode="merged"):
            pass
        assert not model.pristine
    assert model.checksum() == before


class _Stop(Exception):
    pass


def test_a_thousand_random_cycles_leave_the_base_bit_identical(model: Model) -> None:
    source = random.Random(0)
    pool = [adapter(model, seed, paths=tuple(source.sample(PATHS, 3))) for seed in range(12)]
    before = model.checksum()
    for cycle in range(1000):
        entries = [(a, source.uniform(-2, 2)) for a in source.sample(pool, source.randint(1, 4))]
        mode = source.choice(["merged", "live"])
        with suppress(_Stop), ExitStack() as contexts:
            mix = contexts.enter_context(applied(model, Stack(entries), mode=mode))
            for _ in range(source.randint(0, 2)):
                mix.set_weights([source.uniform(-2, 2) for _ in entries])
            if mode == "live" and source.random() < 0.3:
                contexts.enter_context(applied(model, Stack([(pool[0], 0.5)]), mode="live"))
            if source.random() < 0.33:
                raise _Stop
        if cycle % 100 == 99:
            assert model.checksum() == before
    assert not any("forward" in module.__dict__ for module in model.pipeline.unet.modules())


def test_a_restore_by_subtraction_would_have_been_noticed(model: Model) -> None:
    """The negative control of the cycles above: what peers do changes bits."""
    weight, one = model.module(UNET).weight, adapter(model, 1)
    kept = weight.detach().clone()
    with torch.no_grad():
        for _ in range(20):
            weight.add_(one.delta(UNET, weight))
            weight.sub_(one.delta(UNET, weight))
        changed = not torch.equal(weight, kept)
        weight.copy_(kept)
    assert changed


def test_attachments_come_off_in_reverse(model: Model) -> None:
    module = model.module(UNET)
    base = module.forward
    one = attach(module, lambda x: base(x) + 1)
    two = attach(module, lambda x: base(x) + 2)
    two.detach()
    x = torch.zeros(1, module.weight.shape[1])
    assert torch.equal(module(x), base(x) + 1)
    one.detach()
    assert "forward" not in module.__dict__
