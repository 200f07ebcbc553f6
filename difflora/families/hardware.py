"""Where and how a base computes: device, its memory, number format, attention, offload."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from difflora.errors import ConfigError
from difflora.families.family import Family

ATTENTION = ("auto", "sdpa", "xformers")

TILE = 512  # pixels of a VAE tile's edge under offload

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the first there is of cuda, mps, cpu. Raises ConfigError if there is none."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device={device!r} is none that torch knows; use cuda, cuda:1, mps or cpu"
        ) from error
    count = torch.cuda.device_count() if chosen.type == "cuda" else 1
    is_there = {"cpu": True, "mps": torch.backends.mps.is_available()}.get(
        chosen.type, torch.cuda.is_available()
    )
    if not is_there or (chosen.index or 0) >= count:
        raise ConfigError(
            f"device={device!r} is not there: this torch {torch.__version__} finds "
            f"{torch.cuda.device_count()} CUDA devices. Use device='cpu', or install a torch build for your "
            "GPU."
        )
    return chosen


@dataclass(frozen=True, slots=True)
class Usage:
    """The device that a base is loaded to by default, and its memory in bytes; 0 is not known.

    `used` is what everybody uses of a GPU, and what this process uses of the computer's memory.
    """

    device: str
    used: int
    total: int


def usage() -> Usage:
    """Of the device that `load` picks, as it is now."""
    device = pick_device(None)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Usage(torch.cuda.get_device_name(device), total - free, total)
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    name = "Apple GPU" if device.type == "mps" else cpu
    return Usage(name, _resident(), _installed())


def _resident() -> int:
    try:  # Linux
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _installed() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return 0


def pick_dtype(dtype: str | torch.dtype | None, *, family: Family, device: torch.device) -> torch.dtype:
    """The number format asked for, or the usual one.

    That is float32 on the CPU, and on a GPU what the family says; float16 in place of a bfloat16 that the GPU
    only emulates (before NVIDIA's Ampere). Raises ConfigError on one that is not known.
    """
    if dtype is None:
        if device.type == "cpu":
            return torch.float32
        return DTYPES[family.gpu_dtype] if has_bfloat16(device) else torch.float16
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise ConfigError(f"dtype={dtype!r} is not known; use one of: {', '.join(DTYPES)}")
    return chosen


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself: NVIDIA's GPUs before Ampere emulate it."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def require_attention(attention: str, device: torch.device) -> None:
    """Raises ConfigError if `attention` is not known, or is xformers where that cannot run."""
    if attention not in ATTENTION:
        raise ConfigError(f"attention={attention!r} is not known; use one of: {', '.join(ATTENTION)}")
    if attention != "xformers":
        return
    instead = "Use attention='sdpa', PyTorch's own, which is as fast on present GPUs."
    if find_spec("xformers") is None:
        raise ConfigError(
            f"attention='xformers': xformers is not installed (`pip install xformers`). {instead}"
        )
    if device.type != "cuda":
        raise ConfigError(
            f"attention='xformers': xformers has no operator for the device {device}. {instead}"
        )


def use_attention(pipeline: Any, attention: str) -> None:
    """Turns xformers on where it was asked for; "sdpa" and "auto" are what diffusers does by itself.

    Raises ConfigError if xformers has no operator for this GPU and number format.
    """
    if attention != "xformers":
        return
    try:
        pipeline.enable_xformers_memory_efficient_attention()
    except (NotImplementedError, ImportError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"attention='xformers': it has no operator that runs here: {str(error).splitlines()[0]}. "
            f"Install a build for torch {torch.__version__}, or use attention='sdpa'."
        ) from error


def require_offload(device: torch.device) -> None:
    """Raises ConfigError if there is no GPU to move weights off."""
    if device.type == "cpu":
        raise ConfigError(
            "offload=True keeps weights off a GPU until they are used, and the device is cpu: leave it out."
        )


def place(pipeline: Any, *, device: torch.device, offload: bool) -> None:
    """Moves the pipeline to its device.

    Under offload each component is moved there only while it computes, and the VAE works on tiles: what
    SDXL needs on a card of 8 GB.
    """
    if not offload:
        pipeline.to(device)
        return
    pipeline.enable_model_cpu_offload(device=device)
    vae = pipeline.vae
    vae.enable_tiling()
    # By its own measure SDXL's takes 1024 pixels at once, which is what has to be cut.
    vae.tile_sample_min_size = min(vae.tile_sample_min_size, TILE)
    vae.tile_latent_min_size = min(vae.tile_latent_min_size, TILE // 8)
