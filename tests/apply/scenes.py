"""Adapters for layers of the embedded base, and what the base makes of fixed inputs."""

import torch
from torch import Tensor

from difflora.adapter import Adapter, AdapterMeta
from difflora.families.model import Model
from difflora.kinds import LoRA

UNET = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CROSS = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "unet.down_blocks.0.resnets.0.conv1"
POINT = "unet.down_blocks.0.attentions.0.proj_in"
STRIDED = "unet.down_blocks.0.downsamplers.0.conv"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
PATHS = (UNET, CROSS, CONV, POINT, STRIDED, TEXT)


def adapter(model: Model, seed: int, *, paths: tuple[str, ...] = PATHS, rank: int = 3) -> Adapter:
    """Random factors of the size that training gives, for some layers of the model."""
    source = torch.Generator().manual_seed(seed)
    modules = {}
    for path in paths:
        out, *rest = model.shapes()[path]
        down = torch.randn(rank, *rest, generator=source) * 0.05
        up = torch.randn(out, rank, *([1] * (len(rest) - 1)), generator=source) * 0.3
        modules[path] = (LoRA(down, up, 0.5 + seed % 3),)
    return Adapter(modules, AdapterMeta(name=f"random{seed}", family="sd1"))


@torch.no_grad()
def output(model: Model, rows: int = 2) -> Tensor:
    """The UNet's output for fixed inputs and conditions that went through the text encoder."""
    source = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=source).repeat(rows // 2, 1, 1, 1)
    ids = torch.arange(2 * 32).view(2, 32).repeat(rows // 2, 1)
    hidden = model.component("text_encoder")(ids).last_hidden_state
    return model.pipeline.unet(latents, torch.tensor(500), hidden).sample


def relative(a: Tensor, b: Tensor, base: Tensor) -> float:
    """‖a − b‖ in units of the effect ‖b − base‖."""
    return float((a - b).norm() / (b - base).norm())


def tolerance(answer: Tensor, base: Tensor) -> float:
    """What `relative` may be: 1e-5, and what float32 rounds of the base's own answer, in units of the
    effect."""
    return 1e-5 + 2 * torch.finfo(torch.float32).eps * float(base.norm() / (answer - base).norm())


def input_shape(model: Model, path: str) -> tuple[int, ...]:
    """The shape of one row of a layer's input."""
    _, channels, *kernel = model.shapes()[path]
    return (channels, 16, 16) if kernel else (10, channels)
