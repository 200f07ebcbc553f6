"""Trainable factors: nothing changes before the first step, and gradients are those of PEFT."""

import itertools
import weakref
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict

from difflora.adapter import AdapterMeta, Stack, same
from difflora.apply import applied
from difflora.errors import CheckpointError, ConfigError
from difflora.families.model import Model
from difflora.inject import TARGETS, NetworkOptions, injected, targets
from difflora.inject.lora import TrainedLoRA
from difflora.inject.trainable import Layer


def unet_output(model: Model, *, grad: bool = False) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=source)
    hidden = torch.randn(2, 32, 128, generator=source)
    with torch.set_grad_enabled(grad):
        return model.pipeline.unet(latents, torch.tensor([3, 700]), hidden).sample


@pytest.mark.parametrize("preset", TARGETS)
def test_before_the_first_step_the_output_is_bit_identical(shapes_model: Model, preset: str) -> None:
    base = unet_output(shapes_model)
    ids = torch.arange(64).view(2, 32)
    text = shapes_model.component("text_encoder")(ids).last_hidden_state
    with injected(shapes_model, NetworkOptions(targets=preset, train_text_encoder=True), seed=1):
        assert torch.equal(unet_output(shapes_model), base)
        assert torch.equal(shapes_model.component("text_encoder")(ids).last_hidden_state, text)
    assert not any("forward" in module.__dict__ for module in shapes_model.pipeline.unet.modules())


def test_presets_select_more_and_more(shapes_model: Model) -> None:
    chosen = [
        set(targets(shapes_model, NetworkOptions(targets=name, train_text_encoder=True))) for name in TARGETS
    ]
    assert all(small < large for small, large in itertools.pairwise(chosen))
    attention = chosen[0]
    unet = {path for path in attention if path.startswith("unet.")}
    assert len(unet) == 8 * len({path.split(".attn")[0] for path in unet})
    assert len(attention - unet) == 4 * 3  # q, k, v, out of three text layers
    assert "unet.conv_in" in chosen[3] and "unet.conv_in" not in chosen[2]
    assert any(path.endswith("mlp.fc1") for path in chosen[2]) and not any(
        "fc1" in path for path in chosen[1]
    )


@pytest.mark.parametrize(
    ("patterns", "count"), [(r"attn2\.to_[kv]$", 2), (r"mid_block.*attn1, attn2\.to_k$", None)]
)
def test_patterns_select_by_path(shapes_model: Model, patterns: str, count: int | None) -> None:
    paths = targets(shapes_model, NetworkOptions(targets=patterns))
    if count:
        assert all(path.endswith(("attn2.to_k", "attn2.to_v")) for path in paths)
    else:
        assert any("attn1" in path for path in paths) and any("attn2.to_k" in path for path in paths)


@pytest.mark.parametrize(
    ("patterns", "words"), [("atn", "'atn' matches no layer"), ("(", "no regular expression")]
)
def test_patterns_that_select_nothing_are_refused(shapes_model: Model, patterns: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        targets(shapes_model, NetworkOptions(targets=patterns))


def test_start_is_a_pure_function_of_the_seed(shapes_model: Model) -> None:
    def start(seed: int, preset: str = "attn"):
        with injected(shapes_model, NetworkOptions(targets=preset), seed=seed) as factors:
            return factors.collect(AdapterMeta())

    assert same(start(1), start(1))
    assert not same(start(1), start(2))
    one, more = start(1), start(1, "attn+ff")
    (a,), (b,) = one.modules[path := next(iter(one.modules))], more.modules[path]
    assert torch.equal(a.tensors()["down"], b.tensors()["down"])


def test_where_factors_start_is_not_kept_beside_them(
    shapes_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[weakref.ref[torch.Tensor]] = []
    usual = TrainedLoRA.start

    def watched(layer: Layer) -> dict[str, torch.Tensor]:
        start = usual(layer)
        starts.extend(map(weakref.ref, start.values()))
        return start

    monkeypatch.setattr(TrainedLoRA, "start", staticmethod(watched))
    with injected(shapes_model, NetworkOptions(rank=2, train_text_encoder=True), seed=0) as factors:
        assert len(starts) == 2 * len(factors.factors) and not any(start() is not None for start in starts)


def test_gradients_and_outputs_are_those_of_peft(shapes_model: Model, shapes_folder) -> None:
    """The same factors in PEFT's wrapper and beside our layers, through one backward pass, convolutions
    included."""
    peer = UNet2DConditionModel.from_pretrained(shapes_folder / "unet", dtype=torch.float32).requires_grad_(
        False
    )
    names = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "conv1"]
    peer.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=names, init_lora_weights=False))
    options = NetworkOptions(rank=4, alpha=2, targets=",".join(rf"\.{name}$" for name in names))
    target = torch.randn(2, 4, 16, 16)
    with injected(shapes_model, options, seed=0) as factors:
        theirs = {
            name.removesuffix(".default.weight"): tensor
            for name, tensor in peer.named_parameters()
            if "lora_" in name
        }
        with torch.no_grad():
            for factor in factors.factors:
                name = factor.path.removeprefix("unet.")
                factor.parameters["down"].copy_(theirs[f"{name}.lora_A"])
                factor.parameters["up"].copy_(theirs[f"{name}.lora_B"])
        output = unet_output(shapes_model, grad=True)
        (output - target).square().mean().backward()
        expected = unet_output(SimpleNamespace(pipeline=SimpleNamespace(unet=peer)), grad=True)  # pyright: ignore
        (expected - target).square().mean().backward()
        assert torch.allclose(output, expected, atol=1e-5)
        assert len(factors.factors) * 2 == len(get_peft_model_state_dict(peer))
        for factor in factors.factors:
            name = factor.path.removeprefix("unet.")
            for mine, other in ((factor.parameters["down"], "lora_A"), (factor.parameters["up"], "lora_B")):
                wanted = theirs[f"{name}.{other}"].grad
                assert mine.grad is not None and wanted is not None
                assert torch.allclose(mine.grad, wanted, rtol=1e-3, atol=1e-7), f"{name} {other}"


def test_gradients_land_in_the_flat_storage(shapes_model: Model) -> None:
    with injected(shapes_model, NetworkOptions(rank=2), seed=0) as factors:
        assert factors.unet is not None and factors.text is None
        unet_output(shapes_model, grad=True).square().mean().backward()
        norms = sum(float(view.grad.square().sum()) for view in factors.unet.views if view.grad is not None)
        assert norms > 0
        assert float(factors.unet.grad.square().sum()) == pytest.approx(norms)
        before = factors.factors[0].parameters["up"].clone()
        factors.unet.flat.data.add_(1.0)
        assert torch.equal(factors.factors[0].parameters["up"], before + 1.0)


def test_collected_factors_act_as_the_attached_ones(shapes_model: Model) -> None:
    options = NetworkOptions(rank=3, alpha=1.5, targets="all")
    with injected(shapes_model, options, seed=4) as factors:
        for arena in factors.arenas():
            arena.flat.data.add_(torch.randn(arena.flat.shape) * 0.06)
        trained, adapter = unet_output(shapes_model), factors.collect(AdapterMeta(name="x", family="sd1"))
    base = unet_output(shapes_model)
    with applied(shapes_model, Stack([(adapter, 1.0)]), mode="live"):
        assert (unet_output(shapes_model) - trained).norm() < 1e-5 * (trained - base).norm()
    with injected(shapes_model, options, seed=9) as factors:
        factors.restore(adapter)
        assert torch.equal(unet_output(shapes_model), trained)
    with (
        injected(shapes_model, NetworkOptions(rank=3), seed=9) as factors,
        pytest.raises(CheckpointError, match="They differ in"),
    ):
        factors.restore(adapter)


def test_training_beside_an_applied_stack_adds_to_it(shapes_model: Model) -> None:
    options = NetworkOptions(rank=2, targets=r"mid_block.*attn")
    with injected(shapes_model, options, seed=4) as factors:
        for arena in factors.arenas():
            arena.flat.data.add_(torch.randn(arena.flat.shape) * 0.05)
        companion = factors.collect(AdapterMeta(name="companion", family="sd1"))
    with applied(shapes_model, Stack([(companion, 1.0)]), mode="live"):
        wanted = unet_output(shapes_model)
        with injected(shapes_model, options, seed=5) as factors:
            output = unet_output(shapes_model, grad=True)
            assert torch.allclose(output, wanted, atol=1e-6)
            output.square().mean().backward()
            assert all(float(arena.grad.norm()) > 0 for arena in factors.arenas())
