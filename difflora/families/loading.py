"""Loads a base model: finds it, checks it, reads it, and settles how it computes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from difflora.errors import BaseModelError, listing
from difflora.families import family as family_named
from difflora.families.detect import Overrides, place_facts
from difflora.families.family import Family, variant_folder
from difflora.families.folder import folder_weights, read_folder
from difflora.families.hardware import (
    pick_device,
    pick_dtype,
    place,
    require_attention,
    require_offload,
    use_attention,
)
from difflora.families.hub import download, download_configs
from difflora.families.model import BaseFacts, Model, digest
from difflora.families.places import File, Folder, HubId, locate
from difflora.families.quiet import quiet, without_bars
from difflora.families.schedule import base_scheduler
from difflora.families.single_file import read_single_file
from difflora.families.skeleton import read_config
from difflora.families.vae import read_vae
from difflora.families.weights import file_sha256, files_sha256


def load(
    base: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    family: str | None = None,
    prediction_type: str | None = None,
    zero_terminal_snr: bool | None = None,
    vae: str | Path | None = None,
    attention: str = "auto",
    offload: bool = False,
) -> Model:
    """A base model, ready to compute: every component in eval mode, no gradients, no safety checker.

    `base` is a diffusers folder, a single-file .safetensors checkpoint (needs no network), or an id on the
    Hub. Family, prediction type and zero terminal SNR are detected; the arguments of these names override
    that. `vae` is a file or folder used instead of the base's own. `attention` is "auto" (SDPA), "sdpa" or
    "xformers". `offload` keeps on the GPU only what computes, and decodes in tiles: for cards of 8 GB.
    Raises BaseModelError naming all that is wrong with the files, ConfigError on options that cannot work.
    """
    overrides = Overrides(family, prediction_type, zero_terminal_snr)
    chosen_device = pick_device(device)
    require_attention(attention, chosen_device)
    if offload:
        require_offload(chosen_device)
    found = locate(base)
    configs = Folder(download_configs(found.id), found.name) if isinstance(found, HubId) else found
    facts = place_facts(configs, overrides)
    member = family_named(facts.family)
    chosen_dtype = pick_dtype(dtype, family=member, device=chosen_device)
    here = Folder(download(found.id, dtype=chosen_dtype), found.name) if isinstance(found, HubId) else found
    with quiet(), without_bars(), ThreadPoolExecutor(1) as thread:
        pipeline = _read(here, member, facts, dtype=chosen_dtype, vae=vae)
        _settle(pipeline, source=str(base))
        # Beside the move to the device, which reads the same pages.
        sha256 = thread.submit(_sha256, here, member, chosen_dtype)
        place(pipeline, device=chosen_device, offload=offload)
        use_attention(pipeline, attention)
        other = digest(pipeline.vae) if vae is not None else ""
        facts = replace(facts, sha256=sha256.result(), vae_sha256=other)
    return Model(pipeline, member, facts=facts, source=str(base), device=chosen_device)


def _sha256(found: Folder | File, member: Family, dtype: torch.dtype) -> str:
    if isinstance(found, File):
        return file_sha256(found.path)
    weights = folder_weights(found.path, member, dtype=dtype)
    return files_sha256(found.path, [path for one in weights.values() for path in one.files])


def _read(
    found: Folder | File, member: Family, facts: BaseFacts, *, dtype: torch.dtype, vae: str | Path | None
) -> Any:
    configs = (
        found.path if isinstance(found, Folder) else variant_folder(facts.variant, facts.prediction_type)
    )
    scheduler = base_scheduler(read_config(configs / "scheduler" / "scheduler_config.json"), facts)
    other = None
    if vae is not None:
        other = read_vae(Path(vae).expanduser(), config_folder=configs / "vae", family=member, dtype=dtype)
    if isinstance(found, Folder):
        return read_folder(found.path, member, dtype=dtype, vae=other, scheduler=scheduler)
    return read_single_file(found.path, member, configs=configs, dtype=dtype, vae=other, scheduler=scheduler)


def _settle(pipeline: Any, *, source: str) -> None:
    """Makes sure that nothing is without data, and that nothing learns."""
    empty = []
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
            tensors = (*component.named_parameters(), *component.named_buffers())
            empty += [f"{name}.{key}" for key, tensor in tensors if tensor.is_meta]
    if empty:
        raise BaseModelError(
            f"{source}: {len(empty)} tensors were not in it:\n{listing(empty, 12)}\nGet the model again."
        )
    pipeline.set_progress_bar_config(disable=True)
