"""Numbered layers are found as cloneofsimo's own walk over a model finds them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from difflora.errors import AdapterFileError
from difflora.formats import inspect, read, write
from difflora.formats.container import write_tensors

UNET_CLASSES = ["CrossAttention", "Attention", "GEGLU"]
EXTENDED = [*UNET_CLASSES, "ResnetBlock2D"]


@pytest.fixture(scope="module")
def unet(fixtures: Path) -> nn.Module:
    config = dict(UNet2DConditionModel.load_config(fixtures / "base" / "unet_sd1"))
    config["block_out_channels"] = [32, 64, 128, 128]  # in the real ratios, which decide on shortcuts
    return UNet2DConditionModel.from_config(config)  # pyright: ignore[reportReturnType]


def walk(model: nn.Module, classes: list[str], *, old: bool) -> Iterator[tuple[str, nn.Module]]:
    """Every linear layer and convolution inside modules of the classes, as `lora_diffusion` walks.

    `old`: with the feed-forward before the second attention, where diffusers 0.11 registered it.
    """
    ranks = {"attn1": 0, "ff": 1, "attn2": 2}
    seen = set()

    def visit(prefix: str, module: nn.Module, inside: bool) -> Iterator[tuple[str, nn.Module]]:
        inside = inside or type(module).__name__ in classes
        if inside and isinstance(module, nn.Linear | nn.Conv2d) and prefix not in seen:
            seen.add(prefix)
            yield prefix, module
        children = list(module.named_children())
        if old and "ff" in dict(children):
            children.sort(key=lambda item: ranks.get(item[0], 3))
        for name, child in children:
            yield from visit(f"{prefix}.{name}" if prefix else name, child, inside)

    return visit("", model, False)


def numbered(component: str, layers: list[tuple[str, nn.Module]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for number, (_, layer) in enumerate(layers):
        shape = tuple(layer.weight.shape)
        tensors[f"{component}:{number}:up"] = torch.randn(shape[0], 2, *(1,) * (len(shape) - 2))
        tensors[f"{component}:{number}:down"] = torch.randn(2, *shape[1:])
    return tensors


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("classes", [UNET_CLASSES, EXTENDED], ids=["plain", "extended"])
def test_every_number_is_the_layer_it_was(
    tmp_path: Path, unet: nn.Module, classes: list[str], old: bool
) -> None:
    layers = list(walk(unet, classes, old=old))
    tensors = numbered("unet", layers)
    write_tensors(tmp_path / "a.safetensors", tensors, {"unet": json.dumps(classes), "unet:0:rank": "2"})
    found = read(tmp_path / "a.safetensors")
    assert found.modules.keys() == {f"unet.{name}" for name, _ in layers}
    for number, (name, layer) in enumerate(layers):
        up, down = tensors[f"unet:{number}:up"], tensors[f"unet:{number}:down"]
        expected = (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
        assert torch.equal(found.delta(f"unet.{name}", torch.zeros_like(expected)), expected)


def test_text_encoders_and_words_are_read(tmp_path: Path) -> None:
    config = CLIPTextConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=12, num_attention_heads=2)
    layers = list(walk(CLIPTextModel(config), ["CLIPAttention"], old=False))
    tensors = {**numbered("text_encoder", layers), "<s1>": torch.randn(8)}
    write_tensors(
        tmp_path / "a.safetensors", tensors, {"text_encoder": '["CLIPAttention"]', "<s1>": "<embed>"}
    )
    found = read(tmp_path / "a.safetensors")
    names = {name.removeprefix("text_model.") for name, _ in layers}
    assert found.modules.keys() == {f"text_encoder.text_model.{name}" for name in names}
    assert torch.equal(found.tokens["<s1>"]["text_encoder"], tensors["<s1>"][None])
    report = inspect(tmp_path / "a.safetensors")
    assert (report.format, report.family, report.words, report.ok) == ("cloneofsimo", "sd1", ("<s1>",), True)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, "does not list the classes"),
        ({"unet": "{"}, "is not JSON"),
        ({"unet": '["Transformer2DModel"]'}, "layers inside Transformer2DModel; expected CrossAttention"),
        ({"unet": '["GEGLU"]'}, "it has 2 layers of the unet inside GEGLU, in an order that is not"),
    ],
)
def test_numbers_that_cannot_be_placed_are_refused(
    tmp_path: Path, metadata: dict[str, str], expected: str
) -> None:
    tensors = {f"unet:{number}:{side}": torch.ones(4, 4) for number in range(2) for side in ("up", "down")}
    write_tensors(tmp_path / "a.safetensors", tensors, metadata)
    with pytest.raises(AdapterFileError, match=expected):
        read(tmp_path / "a.safetensors")


def test_it_is_not_written(tmp_path: Path, unet: nn.Module) -> None:
    layers = list(walk(unet, UNET_CLASSES, old=True))
    write_tensors(tmp_path / "a.safetensors", numbered("unet", layers), {"unet": json.dumps(UNET_CLASSES)})
    adapter = read(tmp_path / "a.safetensors")
    with pytest.raises(Exception, match="no adapter format is called 'cloneofsimo'; there are: kohya, peft"):
        write(adapter, tmp_path / "b.safetensors", format="cloneofsimo")
