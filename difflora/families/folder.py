"""Reads a base from a diffusers folder."""

import inspect
from pathlib import Path
from typing import Any

import torch

from difflora.errors import BaseModelError
from difflora.families.family import Family
from difflora.families.vae import vae_dtype
from difflora.families.weights import ComponentWeights, component_weights, require_folder_tensors


def folder_weights(folder: Path, family: Family, *, dtype: torch.dtype) -> dict[str, ComponentWeights]:
    """The weight files of the UNet, the text encoders and the VAE. Raises BaseModelError if one has none."""
    own = {part.name: dtype for part in family.components} | {"vae": vae_dtype(family, folder / "vae", dtype)}
    return {name: component_weights(folder / name, dtype=own[name]) for name in own}


def read_folder(folder: Path, family: Family, *, dtype: torch.dtype, vae: Any | None, scheduler: Any) -> Any:
    """The pipeline of a folder on the CPU with `scheduler`, without a safety checker; `vae` replaces its own.

    Raises BaseModelError naming every tensor that is missing, unknown or misshapen, before any data is read.
    """
    import diffusers

    weights = folder_weights(folder, family, dtype=dtype)
    if vae is not None:
        weights.pop("vae")
    require_folder_tensors(folder, weights)
    pipeline_class = getattr(diffusers, family.pipeline_class)
    precision = {"default": dtype, "vae": vae_dtype(family, folder / "vae", dtype)}
    variant = next((found.variant for found in weights.values() if found.variant), None)
    replaced = {} if vae is None else {"vae": vae}
    try:
        return pipeline_class.from_pretrained(
            str(folder),
            torch_dtype=precision,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            scheduler=scheduler,
            **without_extras(pipeline_class),
            **replaced,
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
