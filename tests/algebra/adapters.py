"""Random adapters for the embedded base, of one kind or of several."""

import torch
from torch import Tensor

from difflora.adapter import Adapter, AdapterMeta
from difflora.families.model import Model
from difflora.kinds import Kind, LoRA
from tests.kinds.samples import NORM_NAMES, sample

LINEAR = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.down_blocks.0.resnets.0.conv1"
POINT = "unet.down_blocks.0.attentions.0.proj_in"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
NORM = "unet.down_blocks.0.resnets.0.norm1"
LAYERS = (LINEAR, CONV, POINT, TEXT)
BIASED = (CONV, POINT, TEXT, NORM)
"""Those of the paths whose modules have a bias."""


def of_kind(model: Model, name: str, seed: int, *, dtype: torch.dtype = torch.float32) -> Adapter:
    """A random adapter of the kind `name` of `samples` on a few layers of every shape."""
    biased = name.endswith("_bias") or name == "bias"
    paths = [path for path in LAYERS if not biased or path in BIASED]
    if name in NORM_NAMES:
        paths = [NORM] if name.startswith("norm") else [*paths, NORM]
    modules = {path: (sample(name, model.shapes()[path], dtype, seed),) for path in paths}
    return Adapter(modules, AdapterMeta(name=f"{name}{seed}", family="sd1"))


def loras(seed: int, rank: int, *, dtype: torch.dtype = torch.float32, scale: float = 0.5) -> Adapter:
    """A random LoRA for three layers of a made-up model: (12, 20), (9, 4, 3, 3) and a text layer (8, 8)."""
    source = torch.Generator().manual_seed(seed)

    def pair(out: int, *rest: int) -> tuple[Kind]:
        down = torch.randn(rank, *rest, generator=source)
        up = torch.randn(out, rank, *[1] * (len(rest) - 1), generator=source)
        return (LoRA(down.to(dtype), up.to(dtype), scale),)

    modules = {LINEAR: pair(12, 20), CONV: pair(9, 4, 3, 3), TEXT: pair(8, 8)}
    return Adapter(modules, AdapterMeta(name=f"lora{seed}", family="sd1"))


def relative(got: Tensor, wanted: Tensor) -> float:
    """‖got − wanted‖ / ‖wanted‖; ‖got‖ where nothing is wanted."""
    norm = float(wanted.double().norm())
    return float((got.double() - wanted.double()).norm()) / (norm or 1.0)
