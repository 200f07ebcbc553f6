"""Models on the Hub: fetched into its cache, or found there without a network."""

from pathlib import Path

import torch

from difflora.errors import BaseModelError
from difflora.families.quiet import quiet


def download_configs(model_id: str) -> Path:
    """The cached folder of a model with at least its configs. Raises BaseModelError if it cannot be had."""
    import httpx
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return Path(snapshot_download(model_id, allow_patterns=["model_index.json", "*/*config.json"]))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise _unavailable(model_id, error) from error


def download(model_id: str, *, dtype: torch.dtype) -> Path:
    """The cached folder of a model, complete; a half-precision copy if there is one and `dtype` is half.

    Raises BaseModelError if it is neither cached nor can be fetched.
    """
    import httpx

    try:
        if dtype != torch.float32 and (folder := _fetch(model_id, variant="fp16")):
            return folder
        folder = _fetch(model_id, variant=None)
    except (OSError, httpx.HTTPError) as error:
        raise _unavailable(model_id, error) from error
    if folder is None:
        raise _unavailable(model_id, ValueError("it has no .safetensors weights"))
    return folder


def _fetch(model_id: str, *, variant: str | None) -> Path | None:
    """None if the model has no files of that variant, which diffusers tells by a ValueError."""
    from diffusers import DiffusionPipeline

    try:
        with quiet():
            return Path(
                DiffusionPipeline.download(
                    model_id, variant=variant, use_safetensors=True, safety_checker=None
                )
            )
    except ValueError:
        return None


def _unavailable(model_id: str, error: Exception) -> BaseModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return BaseModelError(
        f"{model_id!r} is no folder or file here, is not in the Hub's cache, and could not be downloaded: "
        f"{reason}\n"
        "Check the name and the network, log in with `hf auth login` if the model is gated, or give a "
        "local diffusers folder or .safetensors checkpoint."
    )
