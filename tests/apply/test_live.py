"""How a live stack computes: its cost, the forms it chooses, its memory, compiled models and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from difflora.adapter import Adapter, Stack
from difflora.apply import Live, applied
from difflora.families.model import Model
from difflora.kinds import LoRA
from tests.apply.scenes import CONV, PATHS, UNET, adapter, input_shape, output, relative

FULL = 64
"""A rank from which on all layers of `PATHS` are cheaper with ΔW than with factors."""

WORDS = "text_encoder.text_model.embeddings.token_embedding"
BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0"


class Kernels(TorchDispatchMode):
    """Counts the operators that compute."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def kernels(model: Model) -> int:
    with Kernels() as counted:
        output(model)
    return counted.count


def both(model: Model, stack: Stack, call: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What `call` gives without the stack, with it merged, and with it live."""
    base = call()
    with applied(model, stack, mode="merged"):
        merged = call()
    with applied(model, stack, mode="live"):
        live = call()
    return base, merged, live


def test_the_cost_does_not_grow_with_the_number_of_adapters(model: Model) -> None:
    linear = [path for path in PATHS if isinstance(model.module(path), nn.Linear)]
    base, more = kernels(model), []
    for count in (1, 2, 8):
        stack = Stack([(adapter(model, seed, rank=1), 0.5) for seed in range(count)])
        with applied(model, stack, mode="live"):
            more.append(kernels(model) - base)
    assert more == [2 * len(linear) + 3 * (len(PATHS) - len(linear))] * 3


def test_high_ranks_cost_nothing_in_float32(model: Model) -> None:
    stack = Stack([(adapter(model, seed, rank=FULL), 0.1) for seed in range(2)])
    count = kernels(model)
    with applied(model, stack, mode="live"):
        assert kernels(model) == count
    base, merged, live = both(model, stack, lambda: output(model))
    assert relative(live, merged, base) < 1e-5


def test_a_change_of_weights_is_written_into_the_same_memory(model: Model) -> None:
    for rank in (3, FULL):
        stack = Stack([(adapter(model, 1, rank=rank), 0.2), (adapter(model, 2), 0.3)])
        with applied(model, stack, mode="live") as mix:
            assert isinstance(mix, Live)
            forms = [slot.form for slot in mix.slots]
            mix.set_weights([0.9, -0.4])
            assert [slot.form for slot in mix.slots] == forms
            after = output(model)
        with applied(model, stack.with_weights([0.9, -0.4]), mode="live"):
            assert torch.equal(output(model), after)


def test_another_weight_writes_the_columns_of_its_adapter_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    plain = torch.mul

    def mul(*given: Tensor, out: Tensor) -> Tensor:
        written.append(out.numel())
        return plain(*given, out=out)

    monkeypatch.setattr("difflora.apply.bundle.torch.mul", mul)
    more = []
    for count in (1, 2, 4):
        weights = [0.5] * count
        stack = Stack([(adapter(model, seed, rank=2), 0.5) for seed in range(count)])
        with applied(model, stack, mode="live") as mix:
            written.clear()
            mix.set_weights(weights)
            assert not written, "the same weights write nothing"
            weights[-1] = -0.3
            mix.set_weights(weights)
            more.append(sum(written))
            after = output(model)
        with applied(model, stack.with_weights(weights), mode="live"):
            assert torch.equal(output(model), after)
    assert more[0] > 0 and more == [more[0]] * 3


@pytest.mark.parametrize(("outer", "inner"), [(3, FULL), (FULL, 3), (FULL, FULL)])
def test_live_inside_live_adds_whatever_the_ranks(model: Model, outer: int, inner: int) -> None:
    a, b = Stack([(adapter(model, 1, rank=outer), 0.3)]), Stack([(adapter(model, 2, rank=inner), 0.3)])
    base = output(model)
    with applied(model, Stack([*a, *b]), mode="merged"):
        wanted = output(model)
    with applied(model, a, mode="live"), applied(model, b, mode="live"):
        assert relative(output(model), wanted, base) < 1e-5
    assert torch.equal(output(model), base)


@torch.no_grad()
def test_high_ranks_in_half_precision_stay_beside_the_weight(shapes_folder) -> None:
    """An update below the rounding of W0 is there live, and lost merged."""
    from difflora.families import load

    model = load(shapes_folder, device="cpu", dtype="bfloat16")
    one = adapter(model, 1, paths=(UNET,), rank=FULL)
    stack = Stack([(one, 1e-4)])
    weight = model.module(UNET).weight
    # Inputs that the base maps to almost nothing show the update alone.
    _, _, right = torch.linalg.svd(weight.float())
    x = right[-1:].to(torch.bfloat16) * 1e3
    base, merged, live = both(model, stack, lambda: model.module(UNET)(x).float())
    wanted = 1e-4 * (x.float() @ one.delta(UNET).T)
    assert relative(live, base + wanted, base) < 0.1 < relative(merged, base + wanted, base)


@torch.no_grad()
def test_images_have_their_own_mix_whatever_the_rank(model: Model) -> None:
    stack = Stack([(adapter(model, 1, rank=FULL), 0.1), (adapter(model, 2), 1.0)])
    for path in PATHS:
        x = torch.randn(4, *input_shape(model, path))
        with applied(model, stack, mode="live") as mix:
            assert isinstance(mix, Live)
            mix.set_image_weights([[0.1, 0.9], [0.0, -0.5]])
            together = model.module(path)(x)
            for image, weights in enumerate([[0.1, 0.9], [0.0, -0.5]]):
                mix.set_weights(weights)
                alone = model.module(path)(x)
                assert torch.allclose(together[image::2], alone[image::2], atol=1e-5)


@torch.no_grad()
def test_convolutions_pad_a_change_as_they_pad_themselves(model: Model) -> None:
    """Images that tile are made by circular padding."""
    conv = model.module(CONV)
    assert isinstance(conv, nn.Conv2d)
    x = torch.randn(2, *input_shape(model, CONV))
    conv.padding_mode = "circular"
    try:
        for rank in (2, FULL):
            stack = Stack([(adapter(model, 1, paths=(CONV,), rank=rank), 0.7)])
            base, merged, live = both(model, stack, lambda: conv(x))
            assert relative(live, merged, base) < 1e-5
    finally:
        conv.padding_mode = "zeros"


@torch.no_grad()
def test_embeddings_take_low_rank_changes(model: Model) -> None:
    words, width = model.shapes()[WORDS]
    kind = LoRA(torch.randn(2, width), torch.randn(words, 2) * 0.1, 1.0)
    stack = Stack([(Adapter({WORDS: (kind,)}), 0.4)])
    ids = torch.arange(64).view(2, 32)
    base, merged, live = both(model, stack, lambda: model.module(WORDS)(ids))
    assert relative(live, merged, base) < 1e-5
    with applied(model, stack, mode="live") as mix:
        assert isinstance(mix, Live)
        mix.set_image_weights([[0.0], [0.4]])
        rows = model.module(WORDS)(ids)
    assert torch.equal(rows[0], base[0]) and torch.allclose(rows[1], live[1], atol=1e-6)


@pytest.mark.parametrize("rank", [3, FULL])
def test_gradients_pass_through(model: Model, rank: int) -> None:
    stack = Stack([(adapter(model, 1, rank=rank), 0.3)])
    for path in PATHS[:4]:
        x = torch.randn(2, *input_shape(model, path), requires_grad=True)

        def gradient(x: Tensor = x, path: str = path) -> Tensor:
            (found,) = torch.autograd.grad(model.module(path)(x).square().sum(), x)
            return found

        base, merged, live = both(model, stack, gradient)
        assert relative(live, merged, base) < 1e-5


@torch.no_grad()
def test_a_compiled_block_follows_the_stack_and_is_not_compiled_again_for_a_weight(model: Model) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    block = model.module(BLOCK)
    compiled = torch.compile(block, backend=backend)
    x, states = torch.randn(2, 256, 64), torch.randn(2, 32, 128)
    base = compiled(x, encoder_hidden_states=states)
    stack = Stack([(adapter(model, 1), 1.0), (adapter(model, 2), 0.5)])
    with applied(model, stack, mode="live") as mix:
        for weights in ([1.0, 0.5], [0.3, 0.2], [-1.0, 3.0]):
            mix.set_weights(weights)
            eager = block(x, encoder_hidden_states=states)
            assert torch.equal(compiled(x, encoder_hidden_states=states), eager)
            assert not torch.equal(eager, base)
            assert len(graphs) == 2
    assert torch.equal(compiled(x, encoder_hidden_states=states), base)
    torch._dynamo.reset()
