"""Every trainable kind on one layer: base + ΔW of what is collected, and the gradients of just that."""

from collections.abc import Mapping
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from difflora.errors import CheckpointError
from difflora.inject.lora import TrainedPissa
from difflora.inject.options import InitName, KindName
from difflora.inject.table import TRAINABLE
from difflora.inject.trainable import Layer, Trainable

STARTS = [(kind, init) for kind, inits in TRAINABLE.items() for init in inits]
SCALE = 0.5
INPUTS = {
    "linear": (5, 12),
    "linear without bias": (2, 5, 12),
    "conv": (2, 12, 6, 5),
    "strided conv": (2, 12, 6, 6),
    "1x1 conv": (2, 12, 4, 4),
}


def layer(name: str) -> nn.Linear | nn.Conv2d:
    torch.manual_seed(3)
    made = {
        "linear": lambda: nn.Linear(12, 20),
        "linear without bias": lambda: nn.Linear(12, 20, bias=False),
        "conv": lambda: nn.Conv2d(12, 20, 3, padding=1),
        "strided conv": lambda: nn.Conv2d(12, 20, 3, stride=2, padding=1),
        "1x1 conv": lambda: nn.Conv2d(12, 20, 1, bias=False),
    }[name]()
    return made.requires_grad_(False)


def trainable(
    kind: str, init: str, module: nn.Linear | nn.Conv2d, *, rank: int = 2, move: float = 0.0
) -> Trainable:
    """A trainable kind beside a layer, its parameters moved at random from where they start."""
    made = TRAINABLE[kind][init]
    spot = Layer("unet.x", module, tuple(module.weight.shape), rank, SCALE, seed=5)
    source = torch.Generator().manual_seed(1)
    starts = made.start(spot)
    moved = {name: t + move * torch.randn(t.shape, generator=source) for name, t in starts.items()}
    return made(spot, {name: nn.Parameter(tensor) for name, tensor in moved.items()})


def formula(trained: Trainable, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """W0 + ΔW and the change of the bias as the papers state them, by plain autograd."""
    p: Mapping[str, Tensor] = trained.parameters
    name, shape = type(trained).__name__, weight.shape
    if name == "TrainedFull":
        return weight + p["diff"], p.get("bias")
    if name == "TrainedLoHa":
        return weight + SCALE * ((p["w1_a"] @ p["w1_b"]) * (p["w2_a"] @ p["w2_b"])).view(shape), None
    if name == "TrainedLoKr":
        right = p["w2"].flatten(1) if "w2" in p else SCALE * p["w2_a"] @ p["w2_b"]
        return weight + torch.kron(p["w1"], right).view(shape), None
    if isinstance(trained, TrainedPissa):
        up, down = trained._up + p["up"], trained._down + p["down"]
        moved = up.flatten(1) @ down.flatten(1) - trained._up.flatten(1) @ trained._down.flatten(1)
        return weight + SCALE * moved.view(shape), None
    summed = weight + SCALE * (p["up"].flatten(1) @ p["down"].flatten(1)).view(shape)
    if name == "TrainedDoRA":
        norm = summed.detach().flatten(1).norm(dim=1).view(p["magnitude"].shape)
        return p["magnitude"] * summed / norm, None
    return summed, None


def outcome(output: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(0.1, 1, output.numel()).view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), leaves)]


def test_the_table_has_every_choice_of_the_options() -> None:
    assert tuple(TRAINABLE) == get_args(KindName)
    assert {init for inits in TRAINABLE.values() for init in inits} == set(get_args(InitName))
    assert all("default" in inits for inits in TRAINABLE.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("where", INPUTS)
@pytest.mark.parametrize(("kind", "init"), STARTS)
def test_before_the_first_step_a_layer_is_bit_identical(
    kind: str, init: str, where: str, dtype: torch.dtype
) -> None:
    module = layer(where).to(dtype)
    x = torch.randn(INPUTS[where]).to(dtype)
    assert torch.equal(trainable(kind, init, module).forward()(x), module(x))


@pytest.mark.parametrize("where", INPUTS)
@pytest.mark.parametrize(("kind", "init"), STARTS)
def test_the_output_is_the_base_and_the_collected_delta(kind: str, init: str, where: str) -> None:
    module, x = layer(where), torch.randn(INPUTS[where])
    trained = trainable(kind, init, module, move=0.1)
    collected = trained.kind(torch.float32)
    bias_change = collected.bias_delta(module.bias)
    bias = module.bias if bias_change is None else module.bias + bias_change
    wanted = trained.layer.compute(x, module.weight + collected.delta(module.weight), bias)
    found = trained.forward()(x)
    assert (found - wanted).norm() <= 1e-5 * (wanted - module(x)).norm()
    assert collected.problem(tuple(module.weight.shape)) is None


@pytest.mark.parametrize("where", INPUTS)
@pytest.mark.parametrize(("kind", "init"), STARTS)
def test_gradients_are_those_through_the_changed_weight(kind: str, init: str, where: str) -> None:
    module = layer(where)
    trained = trainable(kind, init, module, move=0.1)
    leaves = list(trained.parameters.values())
    x = torch.randn(INPUTS[where], requires_grad=True)
    weight, bias_change = formula(trained, module.weight)
    bias = module.bias if bias_change is None else module.bias + bias_change
    wanted = outcome(trained.layer.compute(x, weight, bias), [x, *leaves])
    beside = trained.forward()
    for mine, theirs in zip(outcome(beside(x), [x, *leaves]), wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "init"), STARTS)
def test_a_half_precision_base_does_not_round_small_updates_away(kind: str, init: str) -> None:
    """The update of other rows than the first is far below half a unit in the last place of 256."""
    module = layer("linear").to(torch.bfloat16)
    module.weight.fill_(256.0)
    module.bias.zero_()
    x = torch.zeros(1, 12, dtype=torch.bfloat16)
    x[0, 0], x[0, 1] = 1.0, -1.0  # the base gives zero
    trained = trainable(kind, init, module, move=0.1)
    delta = trained.kind(torch.float32).delta(module.weight.float())
    wanted = delta[:, 0] - delta[:, 1] + trained.parameters.get("bias", torch.zeros(20))
    assert wanted.abs().max() > 1e-3
    assert torch.allclose(trained.forward()(x).float()[0], wanted, rtol=3e-2, atol=3e-3)


@pytest.mark.parametrize(("kind", "init"), STARTS)
def test_what_is_collected_is_restored(kind: str, init: str) -> None:
    module = layer("conv")
    trained = trainable(kind, init, module, move=0.1)
    values = trained.values(trained.kind(torch.float32))
    assert all(torch.equal(values[name], tensor) for name, tensor in trained.parameters.items())
    other = next(name for name in TRAINABLE if name != kind)
    with pytest.raises(CheckpointError, match=r"unet\.x"):
        trained.values(trainable(other, "default", module).kind(torch.float32))


def test_pissa_starts_at_the_principal_directions_and_its_file_is_relative_to_the_true_weight() -> None:
    module = layer("linear")
    trained = trainable("lora", "pissa", module, rank=4)
    assert isinstance(trained, TrainedPissa)
    u, s, v = torch.linalg.svd(module.weight)
    best = u[:, :4] @ torch.diag(s[:4]) @ v[:4]
    assert torch.allclose(SCALE * trained._up @ trained._down, best, atol=1e-5)
    collected = trained.kind(torch.float32)
    assert collected.tensors()["down"].shape == (8, 12)
    assert not collected.delta(module.weight).any()


def test_pissa_of_more_terms_than_the_layer_has_keeps_the_rest_at_zero() -> None:
    module = layer("linear")
    trained = trainable("lora", "pissa", module, rank=16, move=0.1)
    assert isinstance(trained, TrainedPissa)
    assert trained._down.shape == (16, 12) and not trained._down[12:].any() and not trained._up[:, 12:].any()
    expected, _ = formula(trained, module.weight)
    delta = trained.kind(torch.float32).delta(module.weight)
    assert torch.allclose(delta, expected - module.weight, atol=1e-5)


def test_pissa_finds_its_directions_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine LAPACK on two threads was 200 times slower."""
    threads: list[int] = []
    svd = torch.linalg.svd

    def watched(*args, **kwargs):
        threads.append(torch.get_num_threads())
        return svd(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, "svd", watched)
    torch.set_num_threads(2)
    try:
        trainable("lora", "pissa", layer("linear"))
        assert threads == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_pissa_in_half_precision_loses_little_of_a_small_change() -> None:
    """The difference of two products in float16 would be off by the rounding of the whole weight."""
    trained = trainable("lora", "pissa", layer("linear"), rank=4, move=1e-3)
    exact, half = (trained.kind(dtype).delta() for dtype in (torch.float32, torch.float16))
    assert (half - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize("where", ["linear", "linear without bias", "conv"])
def test_dora_is_that_of_peft(where: str) -> None:
    module, x = layer(where), torch.randn(INPUTS[where])
    trained = trainable("dora", "default", module, move=0.1)
    holder = nn.Sequential(layer(where))
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=1, target_modules=["0"], use_dora=True), holder)
    peer = dict(holder.named_parameters())
    names = {
        "down": "0.lora_A.default.weight",
        "up": "0.lora_B.default.weight",
        "magnitude": "0.lora_magnitude_vector.default.weight",
    }
    with torch.no_grad():
        for name, theirs in names.items():
            peer[theirs].copy_(trained.parameters[name].view(peer[theirs].shape))
    mine = outcome(trained.forward()(x), list(trained.parameters.values()))
    wanted = outcome(holder(x), [peer[names[name]] for name in trained.parameters])
    for own, other in zip(mine, wanted, strict=True):
        assert torch.allclose(own, other.view(own.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["linear", "conv", "1x1 conv"])
@pytest.mark.parametrize(("kind", "peer"), [("loha", LohaModule), ("lokr", LokrModule)])
@pytest.mark.parametrize("rank", [1, 2, 9])
def test_loha_and_lokr_are_those_of_lycoris(kind: str, peer: type, where: str, rank: int) -> None:
    module, x = layer(where), torch.randn(INPUTS[where])
    trained = trainable(kind, "default", module, rank=rank, move=0.1)
    theirs = peer("x", module, 1.0, rank, rank * SCALE)
    prefix = "hada_" if kind == "loha" else "lokr_"
    parameters = dict(theirs.named_parameters())
    assert {name.removeprefix(prefix) for name in parameters} == set(trained.parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(trained.parameters[name.removeprefix(prefix)])
    leaves = [trained.parameters[name.removeprefix(prefix)] for name in parameters]
    mine = outcome(trained.forward()(x), leaves)
    wanted = outcome(theirs(x), list(parameters.values()))
    for own, other in zip(mine, wanted, strict=True):
        assert torch.allclose(own, other, rtol=1e-4, atol=1e-5)


def test_lokr_divides_as_its_factor_says() -> None:
    module = layer("linear")
    wide = Layer("unet.x", module, (20, 12), 1, SCALE, seed=0, lokr_factor=2)
    assert {name: tuple(t.shape) for name, t in TRAINABLE["lokr"]["default"].start(wide).items()} == {
        "w1": (2, 2),
        "w2_a": (10, 1),
        "w2_b": (1, 6),
    }


def test_a_layer_with_a_forward_in_front_keeps_it() -> None:
    for kind, init in STARTS:
        module, x = layer("linear"), torch.randn(5, 12)
        plain = trainable(kind, init, module, move=0.1).forward()(x)
        inner = module.forward
        module.forward = lambda x, inner=inner: inner(x) + F.linear(x, torch.ones(20, 12))
        found = trainable(kind, init, module, move=0.1).forward()(x)
        assert not torch.allclose(found, plain)
        if kind != "dora":
            assert torch.allclose(found, plain + F.linear(x, torch.ones(20, 12)), atol=1e-4)
