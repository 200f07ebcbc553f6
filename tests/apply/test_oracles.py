"""Stacks against the forward passes of PEFT and LyCORIS on copies of the same layers."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from difflora.adapter import Adapter, Stack
from difflora.apply import applied
from difflora.families.model import Model
from difflora.kinds import DoRA, Kind, LoRA
from tests.apply.scenes import CONV, POINT, relative, tolerance
from tests.kinds.test_lycoris import PEERS, attach, kind_of

BIASED = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
WORDS = "text_encoder.text_model.embeddings.token_embedding"
LAYERS = (BIASED, CONV, POINT)


def inputs(model: Model, path: str) -> Tensor:
    _, channels, *kernel = model.shapes()[path]
    if path == WORDS:
        return torch.arange(32).view(2, 16)
    return torch.randn(2, channels, 16, 16) if kernel else torch.randn(2, 10, channels)


def check(model: Model, path: str, stack: Stack, *, x: Tensor, truth: Tensor) -> None:
    """Live and merged answer as the peer does."""
    module = model.module(path)
    base = module(x)
    assert (truth - base).norm() > 1e-3 * base.norm()
    for mode in ("live", "merged"):
        with applied(model, stack, mode=mode):
            assert relative(module(x), truth, base) < tolerance(truth, base), mode


@torch.no_grad()
@pytest.mark.parametrize("path", LAYERS)
@pytest.mark.parametrize("name", PEERS)
def test_lycoris_answers_the_same(model: Model, name: str, path: str) -> None:
    layer = copy.deepcopy(model.module(path))
    peer = attach(PEERS[name], layer)
    x = inputs(model, path)
    kind = kind_of(peer.state_dict())
    check(model, path, Stack([(Adapter({path: (kind,)}), 1.0)]), x=x, truth=peer(x))


def peft_layer(model: Model, path: str, *, adapters: int, **options: bool) -> nn.Module:
    """A copy of the layer in PEFT's wrapper, with random factors in adapters "0", "1" ..., all active."""
    host = nn.ModuleDict({"layer": copy.deepcopy(model.module(path))})
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["layer"], init_lora_weights=False, **options)
    for number in range(adapters):
        inject_adapter_in_model(config, host, adapter_name=str(number))
    layer = host["layer"]
    for name, parameter in layer.named_parameters():
        if "magnitude" in name:
            parameter.mul_(0.8 + 0.4 * torch.rand_like(parameter))
        elif "lora_" in name:
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    layer.set_adapter([str(number) for number in range(adapters)])
    return layer.eval()


def kinds_of(layer: nn.Module, *, scale: float) -> list[Kind]:
    """What PEFT's adapters on a layer are in our terms."""
    tensors = {name: tensor.detach() for name, tensor in layer.named_parameters()}
    found: list[Kind] = []
    for number in range(sum(".weight" in name and "lora_A" in name for name in tensors)):
        down, up = (tensors[f"lora_{factor}.{number}.weight"] for factor in "AB")
        kind = LoRA(down, up, scale)
        magnitude = tensors.get(f"lora_magnitude_vector.{number}.weight")
        ones = [1] * (down.ndim - 1)
        found.append(kind if magnitude is None else DoRA(kind, magnitude.reshape(-1, *ones)))
    return found


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
@pytest.mark.parametrize("path", LAYERS)
@pytest.mark.parametrize(
    ("options", "scale", "adapters"),
    [({}, 1.5, 1), ({}, 1.5, 3), ({"use_rslora": True}, 3.0, 2), ({"use_dora": True}, 1.5, 1)],
    ids=["lora", "three lora", "rslora", "dora"],
)
def test_peft_answers_the_same(
    model: Model, path: str, options: dict[str, bool], scale: float, adapters: int
) -> None:
    peer = peft_layer(model, path, adapters=adapters, **options)
    x = inputs(model, path)
    kinds = kinds_of(peer, scale=scale)
    assert len(kinds) == adapters
    check(model, path, Stack([(Adapter({path: (kind,)}), 1.0) for kind in kinds]), x=x, truth=peer(x))


@torch.no_grad()
def test_peft_answers_the_same_for_embeddings(model: Model) -> None:
    peer = peft_layer(model, WORDS, adapters=1)
    tensors = dict(peer.named_parameters())
    kind = LoRA(tensors["lora_embedding_B.0"].detach().T, tensors["lora_embedding_A.0"].detach().T, 1.5)
    x = inputs(model, WORDS)
    check(model, WORDS, Stack([(Adapter({WORDS: (kind,)}), 1.0)]), x=x, truth=peer(x))
