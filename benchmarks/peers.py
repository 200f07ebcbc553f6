"""The base and its adapters as diffusers and PEFT hold them, with the very factors that ours have."""

import copy
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

from difflora.adapter import Adapter, AdapterMeta
from difflora.families import FAMILIES, load
from difflora.families.family import variant_folder
from difflora.families.model import BaseFacts, Model
from difflora.families.skeleton import read_config
from difflora.inject import NetworkOptions, targets
from difflora.kinds import LoRA

BASE = Path(__file__).parents[1] / "sample_data" / "shapes-sd"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


CPU = torch.device("cpu")


def base() -> Model:
    """The embedded base in float32 on the CPU."""
    return load(BASE, device="cpu", dtype="float32")


def random_unet(variant: str, *, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> Model:
    """A UNet of the true architecture of "sd15" or "sdxl" with random weights; there are no text encoders."""
    member = next(one for one in FAMILIES if variant in one.variants)
    configs = variant_folder(variant, "epsilon")
    torch.manual_seed(0)
    with device:
        unet = UNet2DConditionModel.from_config(read_config(configs / "unet" / "config.json"))
    texts = {part.name: nn.Module() for part in member.components if part.is_text}
    pipeline = SimpleNamespace(
        unet=unet.to(dtype).eval().requires_grad_(False), scheduler=DDPMScheduler(), **texts
    )
    facts = BaseFacts(member.name, variant, "epsilon", False, resolution=512, name="random")
    return Model(pipeline, member, facts=facts, source="random", device=device)


def random_adapter(model: Model, seed: int, *, rank: int) -> Adapter:
    """An adapter on the UNet's attention with factors of ordinary size."""
    source = torch.Generator().manual_seed(seed)
    modules = {}
    for path in targets(model, NetworkOptions()):
        out, columns = model.shapes()[path]
        down = torch.randn(rank, columns, generator=source) / rank
        up = torch.randn(out, rank, generator=source) * 0.02
        modules[path] = (LoRA(down, up, 1.0),)
    return Adapter(modules, AdapterMeta(name=f"random{seed}", family=model.family.name))


def peft_unet(model: Model, adapters: list[Adapter], *, rank: int) -> UNet2DConditionModel:
    """A UNet of the same weights in PEFT's wrappers, with the factors of `adapters`, all active at weight 1.

    The weights are shared, which leaves room for two UNets of the true size.
    """
    unet: UNet2DConditionModel = model.pipeline.unet
    unet = copy.deepcopy(unet, {id(weight): weight for weight in unet.parameters()})
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=ATTENTION, init_lora_weights=False)
    for adapter in adapters:
        unet.add_adapter(config, adapter_name=adapter.meta.name)
    parameters: dict[str, nn.Parameter] = dict(unet.named_parameters())
    with torch.no_grad():
        for adapter in adapters:
            for path, (kind,) in adapter.modules.items():
                name = path.removeprefix("unet.")
                for leaf, ours in (("lora_A", "down"), ("lora_B", "up")):
                    parameters[f"{name}.{leaf}.{adapter.meta.name}.weight"].copy_(kind.tensors()[ours])
    if adapters:
        unet.set_adapters([adapter.meta.name for adapter in adapters])
    return unet


def unet_inputs(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (rows, 4, 16, 16), timesteps (rows,) and text states (rows, 32, 128)."""
    source = torch.Generator().manual_seed(0)
    latents = torch.randn(rows, 4, 16, 16, generator=source)
    return latents, torch.linspace(10, 990, rows).long(), torch.randn(rows, 32, 128, generator=source)
