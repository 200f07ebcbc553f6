"""Adapters of every shape that real models have, and the files of other projects."""

from pathlib import Path

import pytest
import torch

from difflora.adapter import Adapter, AdapterMeta
from difflora.families import family
from difflora.kinds import LoRA

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Files that other projects wrote."""
    return FIXTURES


def lora(out: int, rest: tuple[int, ...], *, rank: int, alpha: float) -> LoRA:
    """A random LoRA for a layer whose weight is (out, *rest), with ΔW of ordinary size."""
    down = torch.randn(rank, *rest) / rank
    up = torch.randn(out, rank, *(1,) * (len(rest) - 1)) / 10
    return LoRA(down, up, scale=alpha / rank)


def adapter_for(name: str, *, alpha: float = 2.0) -> Adapter:
    """An adapter of every kind of layer the family has: linear, 1×1 and 3×3, in UNet and text encoders.

    Ranks are mixed; `alpha` is that of all.
    """
    width = {"sd1": 768, "sdxl": 2048}[name]
    modules: dict[str, tuple[LoRA]] = {}
    for number, path in enumerate(sorted(family(name).paths)):
        rank = 2 + number % 3
        if path.endswith(("attn2.to_k", "attn2.to_v")):
            modules[path] = (lora(8, (width,), rank=rank, alpha=alpha),)
        elif path.endswith(("attn1.to_q", "to_out.0", "net.0.proj", "_proj", "mlp.fc1", "linear_1")):
            modules[path] = (lora(8, (12,), rank=rank, alpha=alpha),)
        elif path.endswith(("proj_in", "conv_shortcut")):
            modules[path] = (lora(8, (12, 1, 1), rank=rank, alpha=alpha),)
        elif path.endswith(("conv1", "samplers.0.conv", "conv_in")):
            modules[path] = (lora(8, (12, 3, 3), rank=rank, alpha=alpha),)
    meta = AdapterMeta(name="everything", family=name, base="base", trigger="zxc")
    return Adapter(modules, meta)


@pytest.fixture(params=["sd1", "sdxl"])
def adapter(request: pytest.FixtureRequest) -> Adapter:
    """`adapter_for` each family."""
    return adapter_for(request.param)
