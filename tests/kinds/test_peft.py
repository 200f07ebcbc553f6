"""LoRA and DoRA against PEFT's forward on the same layer."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from difflora.kinds import DoRA, Kind, LoRA

peft = pytest.importorskip("peft")

LAYERS = {
    "linear": lambda: nn.Linear(12, 16),
    "conv 1x1": lambda: nn.Conv2d(12, 16, 1),
    "conv 3x3": lambda: nn.Conv2d(12, 16, 3, padding=1),
}
OPTIONS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "lora with a bias": {"lora_bias": True},
    "dora": {"use_dora": True},
}


def kind_of(wrapped: nn.Module, scale: float) -> Kind:
    """The kind that PEFT's tensors are, its magnitude reshaped to (out, 1 ...)."""
    down, up = wrapped.lora_A["default"], wrapped.lora_B["default"]
    change = LoRA(down.weight, up.weight, scale, bias=up.bias)
    if not wrapped.lora_magnitude_vector:
        return change
    magnitude = wrapped.lora_magnitude_vector["default"].weight
    return DoRA(change, magnitude.reshape(-1, *[1] * (down.weight.ndim - 1)))


def ours(layer: nn.Linear | nn.Conv2d, change: Kind, x: Tensor) -> Tensor:
    weight, shift = layer.weight + change.delta(layer.weight), change.bias_delta(layer.bias)
    bias = layer.bias if shift is None else layer.bias + shift
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, bias)
    return functional.conv2d(x, weight, bias, padding=layer.padding)


@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_a_layer_changed_by_delta_answers_as_peft_does(name: str, layer_name: str) -> None:
    torch.manual_seed(5)
    layer = LAYERS[layer_name]()
    config = peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=["0"], init_lora_weights=False, **OPTIONS[name]
    )
    model = peft.get_peft_model(nn.Sequential(layer), config).eval()
    wrapped = model.base_model.model[0]
    for part, parameter in wrapped.named_parameters():
        if "magnitude" in part:
            parameter.mul_(torch.rand_like(parameter) + 0.5)
    x = torch.randn(5, 12) if isinstance(layer, nn.Linear) else torch.randn(2, 12, 5, 5)
    scale = 2 / 4**0.5 if name == "rslora" else 2 / 4
    truth, base = model(x), layer(x)
    found = ours(wrapped.base_layer, kind_of(wrapped, scale), x)
    assert (base - truth).norm() > 0.01 * truth.norm()
    assert (found - truth).norm() < 1e-5 * truth.norm()
