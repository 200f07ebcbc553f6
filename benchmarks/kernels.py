"""Kernels of one SDXL forward pass under a stack, counted without weights: the same on every machine."""

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch.overrides import TorchFunctionMode

from benchmarks.measure import KernelCount, Row
from benchmarks.peers import ATTENTION, random_unet
from benchmarks.report import compared
from difflora.adapter import Adapter, AdapterMeta, Stack
from difflora.apply import applied
from difflora.families.model import Model
from difflora.inject import NetworkOptions, targets
from difflora.kinds import LoRA

RANK, ADAPTERS = 16, 8
KIND = {"device": "meta", "dtype": torch.bfloat16}


@torch.no_grad()
def kernel_rows() -> list[Row]:
    """SDXL at 1024² with guidance and 8 adapters of rank 16 on its attention, in bfloat16."""
    model = random_unet("sdxl", device=torch.device("meta"), dtype=torch.bfloat16)
    bare = _kernels(model)
    stack = Stack([(_adapter(model, number), 1.0) for number in range(ADAPTERS)])
    with applied(model, stack, mode="live"):
        ours = _kernels(model)
    peer = _peer_kernels(model)
    what = f"kernels of SDXL with {ADAPTERS} adapters (base {bare:,})"
    return [compared(what, ours, peer, "kernels a forward, ours / PEFT's", shown="{:,}", goal="≤ 3000")]


def _adapter(model: Model, number: int) -> Adapter:
    modules = {}
    for path in targets(model, NetworkOptions()):
        out, columns = model.shapes()[path]
        down, up = torch.empty(RANK, columns, **KIND), torch.empty(out, RANK, **KIND)
        modules[path] = (LoRA(down, up, 1.0),)
    # Tensors without data have no hash of their own.
    return Adapter(modules, AdapterMeta(name=f"empty{number}", family="sdxl", file_hash=f"{number:064x}"))


def _peer_kernels(model: Model) -> int:
    unet = model.pipeline.unet
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=ATTENTION, init_lora_weights=False)
    names = [f"empty{number}" for number in range(ADAPTERS)]
    for name in names:
        unet.add_adapter(config, adapter_name=name)
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    unet.set_adapters(names)
    return _kernels(model)


def _kernels(model: Model) -> int:
    latents, states = torch.empty(2, 4, 128, 128, **KIND), torch.empty(2, 77, 2048, **KIND)
    conditions = {"text_embeds": torch.empty(2, 1280, **KIND), "time_ids": torch.empty(2, 6, **KIND)}
    time = torch.tensor(500, device="meta")
    with _AttentionIsOneKernel(), KernelCount() as counted:
        model.pipeline.unet(latents, time, states, added_cond_kwargs=conditions)
    return counted.kernels


class _AttentionIsOneKernel(TorchFunctionMode):
    """As on a GPU; without a device it falls apart into its definition."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))
