"""The VAE of a base, or another in its place: a folder, or a file under diffusers' or the original names."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from difflora.errors import BaseModelError
from difflora.families.family import Family
from difflora.families.headers import Shapes, differences, read_header
from difflora.families.originals import VAE_PREFIXES, is_harmless, original_vae_shapes, vae_attention_as_conv
from difflora.families.skeleton import read_config, skeleton
from difflora.families.weights import (
    component_weights,
    modern_vae_name,
    require_folder_tensors,
    require_nothing_wrong,
)


def vae_dtype(family: Family, config_folder: Path, dtype: torch.dtype) -> torch.dtype:
    """float16 where that is asked for and has the range, else float32: bfloat16 costs visible precision."""
    overflows = family.vae_overflows and read_config(config_folder / "config.json").get("force_upcast", True)
    return torch.float16 if dtype == torch.float16 and not overflows else torch.float32


def read_vae(path: Path, *, config_folder: Path, family: Family, dtype: torch.dtype) -> Any:
    """The AutoencoderKL that a user put in the place of a base's own.

    `path` is a folder (of the VAE, or of a whole model) or a .safetensors file, whose config is then that of
    the base: `config_folder`.
    Raises BaseModelError if it is none, or its tensors are not what the config needs.
    """
    if path.is_dir():
        folder = path / "vae" if (path / "vae").is_dir() else path
        own_dtype = vae_dtype(family, folder, dtype)
        require_folder_tensors(folder.parent, {folder.name: component_weights(folder, dtype=own_dtype)})
        return read_vae_folder(folder, dtype=own_dtype)
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        raise BaseModelError(f"vae={path}: expected a .safetensors file or a diffusers folder of a VAE.")
    return read_vae_file(path, config_folder=config_folder, dtype=vae_dtype(family, config_folder, dtype))


def read_vae_folder(folder: Path, *, dtype: torch.dtype) -> Any:
    """The AutoencoderKL in a folder; its tensors were checked. Raises BaseModelError if it has no weights."""
    from diffusers import AutoencoderKL

    variant = component_weights(folder, dtype=dtype).variant
    return AutoencoderKL.from_pretrained(
        str(folder), torch_dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
    )


def read_vae_file(path: Path, *, config_folder: Path, dtype: torch.dtype) -> Any:
    """The AutoencoderKL in a file of its own or in a whole checkpoint; see `read_vae`."""
    from diffusers import AutoencoderKL

    header = read_header(path)
    require_nothing_wrong(path, vae_problems(header.shapes, config_folder))
    prefix = _prefix(header.shapes)
    with safe_open(path, framework="pt") as file:
        names = [name for name in header.shapes if name.startswith(prefix) and not is_harmless(name)]
        tensors = {modern_vae_name(name.removeprefix(prefix)): file.get_tensor(name) for name in names}
    from_tensors: Any = AutoencoderKL.from_single_file  # takes tensors too, which its annotation does not say
    return from_tensors(
        tensors,
        config=str(config_folder.parent),
        subfolder=config_folder.name,
        torch_dtype=dtype,
        local_files_only=True,
    )


def vae_problems(shapes: Shapes, config_folder: Path) -> list[str]:
    """One line for every tensor that the VAE in a file lacks, has too many or misshapen."""
    prefix = _prefix(shapes)
    own = {
        modern_vae_name(name.removeprefix(prefix)): shape
        for name, shape in shapes.items()
        if name.startswith(prefix) and not is_harmless(name)
    }
    expected = {name: tuple(value.shape) for name, value in skeleton(config_folder).state_dict().items()}
    if not any(".down_blocks." in name for name in own):
        expected, own = original_vae_shapes(expected), vae_attention_as_conv(own)
    return differences(
        {prefix + name: shape for name, shape in expected.items()},
        {prefix + name: shape for name, shape in own.items()},
    )


def _prefix(shapes: Shapes) -> str:
    """The prefix of a VAE's tensors in a whole checkpoint; none if the file is a VAE alone."""
    return next((prefix for prefix in VAE_PREFIXES if any(name.startswith(prefix) for name in shapes)), "")
