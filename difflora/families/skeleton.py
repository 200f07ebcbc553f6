"""Models without weights, built from their configs: what tensors there should be, before any is read."""

import json
from pathlib import Path

import torch
from torch import nn

from difflora.errors import BaseModelError

_DIFFUSERS = ("UNet2DConditionModel", "AutoencoderKL", "FluxTransformer2DModel", "SD3Transformer2DModel")


def skeleton(folder: Path) -> nn.Module:
    """The model that `folder/config.json` describes, on the meta device.

    Raises BaseModelError if the config is missing, is no JSON, or is of a class that no family uses.
    """
    import diffusers
    import transformers

    config = read_config(folder / "config.json")
    name = config.get("_class_name") or next(iter(config.get("architectures") or ["?"]))
    with torch.device("meta"):
        if name in _DIFFUSERS:
            return getattr(diffusers, name).from_config(config)
        if name in ("CLIPTextModel", "CLIPTextModelWithProjection"):
            return getattr(transformers, name)(transformers.CLIPTextConfig.from_dict(config))
        if name == "T5EncoderModel":
            return transformers.T5EncoderModel(transformers.T5Config.from_dict(config))
    raise BaseModelError(
        f"{folder}: the config is of the class {name}; expected a UNet2DConditionModel, an AutoencoderKL or "
        "a CLIP text model. Use a Stable Diffusion 1.x, 2.x or XL base."
    )


def read_config(path: Path) -> dict:
    """A JSON object from a config file. Raises BaseModelError if it is not there, or is none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BaseModelError(
            f"{path} is missing. A diffusers folder has a model_index.json and one folder for each "
            "component; give that folder, or a single-file .safetensors checkpoint."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BaseModelError(f"{path} is no JSON: {error}. Download or export the model again.") from error
    if not isinstance(config, dict):
        raise BaseModelError(
            f"{path} holds {type(config).__name__}, expected a JSON object. Export the model again."
        )
    return config
