"""Random bases of the true layouts at small widths: configs to match, and original checkpoints.

The tensors of a checkpoint are renamed by the package's maps; diffusers reads them back by maps of its own.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from difflora.families.family import ASSETS, Family, Original, canonical_names
from difflora.families.originals import original_shapes, original_vae_shapes

_UNET = {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4, "attention_head_dim": 2}
_XL = {
    "block_out_channels": [8, 16, 16],
    "norm_num_groups": 4,
    "attention_head_dim": [2, 2, 2],
    "transformer_layers_per_block": [1, 1, 2],
    "cross_attention_dim": 40,
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 24,
}
_VAE = {"block_out_channels": [4, 4, 8, 8], "norm_num_groups": 4}
_CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_OPEN_CLIP = _CLIP | {"hidden_size": 24, "projection_dim": 24}

_SMALL = {
    "sd15": {"vae": _VAE, "unet": _UNET | {"cross_attention_dim": 16}, "text_encoder": _CLIP},
    "sd2": {"vae": _VAE, "unet": _UNET | {"cross_attention_dim": 24}, "text_encoder": _OPEN_CLIP},
    "sd2-v": {"vae": _VAE, "unet": _UNET | {"cross_attention_dim": 24}, "text_encoder": _OPEN_CLIP},
    "sdxl": {"vae": _VAE, "unet": _XL, "text_encoder": _CLIP, "text_encoder_2": _OPEN_CLIP},
}

Tensors = dict[str, Tensor]


def shrink_assets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has the package take its configs from a copy in `folder` whose models are a few channels wide."""
    shutil.copytree(ASSETS, folder, dirs_exist_ok=True)
    for variant, components in _SMALL.items():
        for component, changes in components.items():
            path = folder / variant / component / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    # By its name in sys.modules: the package has a function `family` as well.
    monkeypatch.setattr(sys.modules["difflora.families.family"], "ASSETS", folder)
    return folder


def random_components(configs: Path) -> dict[str, nn.Module]:
    """Models with random weights of a folder of configs, by component."""
    torch.manual_seed(0)
    found: dict[str, nn.Module] = {
        "unet": UNet2DConditionModel.from_config(_config(configs, "unet")),
        "vae": AutoencoderKL.from_config(_config(configs, "vae")),
        "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(_config(configs, "text_encoder"))),
    }
    if (configs / "text_encoder_2").is_dir():
        config = CLIPTextConfig.from_dict(_config(configs, "text_encoder_2"))
        found["text_encoder_2"] = CLIPTextModelWithProjection(config)
    return found


def original_tensors(components: Mapping[str, nn.Module], family: Family, *, open_clip: bool) -> Tensors:
    """The tensors of the components as one original checkpoint; `open_clip`: as SD 2.x has them."""
    tensors = {f"first_stage_model.{name}": value for name, value in original_vae(components["vae"]).items()}
    for part in family.components:
        state = components[part.name].state_dict()
        canonical = {new: state[name] for name, new in canonical_names(state, part.name).items()}
        original = part.originals[-1 if open_clip else 0]
        tensors |= {original.prefix + name: value for name, value in _renamed(canonical, original).items()}
    return {name: value.contiguous() for name, value in tensors.items()}


def original_vae(vae: nn.Module) -> Tensors:
    """The tensors of a VAE under original names, without a prefix."""
    state = vae.state_dict()
    shapes = original_vae_shapes({name: tuple(value.shape) for name, value in state.items()})
    pairs = zip(shapes.items(), state.values(), strict=True)
    return {name: value.reshape(shape).clone() for (name, shape), value in pairs}


def save_half(tensors: Tensors, path: Path) -> Path:
    """Writes a checkpoint in float16."""
    save_file({name: value.half() for name, value in tensors.items()}, path)
    return path


def save_hollow(
    shapes: Mapping[str, tuple[int, ...]], path: Path, metadata: dict[str, str] | None = None
) -> Path:
    """Writes a float16 checkpoint of these shapes whose data is a hole: full size, no bytes on disk."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def _config(configs: Path, component: str) -> dict:
    return json.loads((configs / component / "config.json").read_text())


def _renamed(state: Tensors, original: Original) -> Tensors:
    if original.naming != "open_clip":
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        return dict(
            zip(original_shapes(shapes, original.naming), (v.clone() for v in state.values()), strict=True)
        )
    merged: Tensors = {}
    for name, value in state.items():
        (new,) = original_shapes({name: tuple(value.shape)}, "open_clip")
        if new == "text_projection":
            merged[new] = value.T.clone()
        elif ".in_proj_" in new:
            # The state dict has k, v, q in this order; the fused tensor is q, k, v.
            merged[f"{name.split('_proj')[0][-1]} {new}"] = value
        else:
            merged[new] = value.clone()
    fused = {name[2:] for name in merged if name.startswith("q ")}
    for name in fused:
        merged[name] = torch.cat([merged.pop(f"{letter} {name}") for letter in "qkv"])
    return merged
