"""Reads a base from a diffusers folder."""

import inspect
from pathlib import Path
from typing import Any

import torch

from difflora.errors import BaseModelError
from difflora.families.family import Family
from difflora.families.vae import read_vae_folder, vae_dtype
from difflora.families.weights import ComponentWeights, component_weights, require_folder_tensors


def folder_weights(folder: Path, family: Family, *, dtype: torch.dtype) -> dict[str, ComponentWeights]:
    """The weight files of the UNet and the text encoders, and of the VAE if the folder has one.

    Raises BaseModelError if a component has none.
    """
    names = [part.name for part in family.components]
    found = {name: component_weights(folder / name, dtype=dtype) for name in names}
    if any(weights.variant for weights in found.values()):
        # diffusers takes that variant of every component that has it.
        found = {name: component_weights(folder / name, dtype=torch.float16) for name in names}
    if any((folder / "vae").glob("*.safetensors")):
        found["vae"] = component_weights(folder / "vae", dtype=vae_dtype(family, folder / "vae", dtype))
    return found


def read_folder(folder: Path, family: Family, *, dtype: torch.dtype, vae: Any | None, scheduler: Any) -> Any:
    """The pipeline of a folder on the CPU with `scheduler`, without a safety checker; `vae` replaces its own.

    Raises BaseModelError naming every tensor that is missing, unknown or misshapen, before any data is read.
    """
    import diffusers

    weights = folder_weights(folder, family, dtype=dtype)
    checked = {name: found for name, found in weights.items() if name != "vae" or vae is None}
    require_folder_tensors(folder, checked)
    if vae is None:
        vae = read_vae_folder(folder / "vae", dtype=vae_dtype(family, folder / "vae", dtype))
    pipeline_class = getattr(diffusers, family.pipeline_class)
    try:
        return pipeline_class.from_pretrained(
            str(folder),
            torch_dtype=dtype,
            variant=next(
                (one.variant for name, one in weights.items() if name != "vae" and one.variant), None
            ),
            use_safetensors=True,
            local_files_only=True,
            vae=vae,
            scheduler=scheduler,
            **without_extras(pipeline_class),
        )
    except (OSError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise BaseModelError(
            f"{folder}: diffusers cannot build a {family.pipeline_class} from it: {error}. Export the model "
            "again, or check that it belongs to this family."
        ) from error


def without_extras(pipeline_class: type) -> dict[str, Any]:
    """Arguments that keep the safety checker, the image encoder and the watermark out of a pipeline."""
    wanted = {
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
        "add_watermarker": False,
    }
    accepted = inspect.signature(pipeline_class).parameters
    return {name: value for name, value in wanted.items() if name in accepted}
