"""A collection as people have them: thousands of adapters of real size, of which no two are quite alike.

Headers are whole and true, the data are holes of the right size, so that a file takes what its header does.
"""

import json
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from difflora.families import SD1, SDXL
from difflora.families.family import path_table

Shape = tuple[int, ...]

# Spelling -> how many of a hundred files have it.
SHARES = {
    "lora": 44, "unet_only": 10, "resized": 5, "locon": 8, "loha": 4, "lokr": 4, "dora": 4,
    "sdxl": 12, "diffusers": 5, "diffusers_sdxl": 2, "peft": 2,
}  # fmt: skip

_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
_WIDTHS = {
    "sd15": {"down": (320, 640, 1280, 1280), "up": (1280, 1280, 640, 320), "text": 768},
    "sdxl": {"down": (320, 640, 1280), "up": (1280, 640, 320), "text": 2048},
}
_ATTENTION = re.compile(r".+\.(to_[qkv]|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2)")
_KERNELS = re.compile(r".+\.(conv[12]|conv_shortcut|time_emb_proj|(down|up)samplers\.0\.conv)")
_TEXT = re.compile(r"text_encoder\..+\.(self_attn\.\w+|mlp\.fc[12])")
_WORDS = ("solo", "hair", "eyes", "blue", "long", "dress", "sky", "smile", "hat", "tree", "night", "robot")


@dataclass(frozen=True, slots=True)
class Style:
    """What one file is like. `rank` is that of its largest module, if they differ."""

    spelling: str
    rank: int
    dtype: str
    alpha_dtype: str


@dataclass(frozen=True, slots=True)
class Layer:
    """A module by its name in a file, and the shape of its weight."""

    name: str
    extent: Shape


def collect(folder: Path, count: int) -> int:
    """Writes `count` adapters into `folder` and its subfolders; returns the number of their modules."""
    spellings = random.Random(0).choices(list(SHARES), list(SHARES.values()), k=count)
    modules = 0
    for number, spelling in enumerate(spellings):
        draw = random.Random(number)
        rank = draw.choice((4, 8, 16, 32, 64, 128)) if draw.random() < 0.7 else draw.randrange(1, 129)
        dtype = draw.choice(("F16", "F16", "BF16", "F32"))
        style = Style(spelling, rank, dtype, draw.choice((dtype, "F32")))
        path = folder / str(number % 40) / f"style {number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text('{"activation text": "some words"}')
        modules += write_hollow(path, style, draw)
    return modules


def write_hollow(path: Path, style: Style, draw: random.Random) -> int:
    """Writes one adapter without its values; returns the number of its modules. PEFT's is a folder."""
    layers = changed(style.spelling)
    tensors: dict[str, tuple[str, Shape]] = {}
    for layer in layers:
        rank = draw.randrange(1, style.rank + 1) if style.spelling == "resized" else style.rank
        for leaf, shape in leaves(style.spelling, layer.extent, rank).items():
            dtype = style.alpha_dtype if leaf == "alpha" else style.dtype
            tensors[f"{layer.name}.{leaf}"] = (dtype, shape)
    metadata = facts(style, draw)
    if style.spelling == "peft":
        path = path.with_suffix("") / "adapter_model.safetensors"
        path.parent.mkdir()
        config = {"peft_type": "LORA", "r": style.rank, "lora_alpha": style.rank, "auto_mapping": None}
        path.with_name("adapter_config.json").write_text(json.dumps(config))
        metadata = {"format": "pt"}
    _write(path, tensors, metadata)
    return len(layers)


@cache
def changed(spelling: str) -> tuple[Layer, ...]:
    """The modules that a file of that spelling changes."""
    patterns = [_ATTENTION]
    if spelling in ("locon", "loha", "lokr", "dora"):
        patterns.append(_KERNELS)
    if spelling not in ("unet_only", "sdxl", "diffusers_sdxl", "peft"):
        patterns.append(_TEXT)
    variant = "sdxl" if "sdxl" in spelling else "sd15"
    return tuple(
        Layer(named(spelling, path), extent(path, variant))
        for path in path_table(variant)
        if any(pattern.fullmatch(path) for pattern in patterns)
        and (variant == "sd15" or path.startswith("unet."))
    )


def extent(path: str, variant: str) -> Shape:
    """The shape of a layer's weight."""
    widths = _WIDTHS[variant]
    if path.startswith("text_encoder."):
        return {"fc1": (3072, 768), "fc2": (768, 3072)}.get(path.rpartition(".")[2], (768, 768))
    place = re.search(r"\.(down|up)_blocks\.(\d)\.", path)
    width = widths[place[1]][int(place[2])] if place else 1280
    kernel = (3, 3) if re.search(r"conv[12]$|samplers\.0\.conv$", path) else ()
    if path.endswith("conv_shortcut") or (variant == "sd15" and re.search(r"\.proj_(in|out)$", path)):
        kernel = (1, 1)
    sizes = {
        "ff.net.0.proj": (8 * width, width),
        "ff.net.2": (width, 4 * width),
        "time_emb_proj": (width, 1280),
    }
    sizes |= dict.fromkeys(("attn2.to_k", "attn2.to_v"), (width, widths["text"]))
    return next((size for end, size in sizes.items() if path.endswith(end)), (width, width)) + kernel


def leaves(spelling: str, size: Shape, rank: int) -> dict[str, Shape]:
    """Leaf -> shape, as kohya or LyCORIS names them."""
    out, inside, *kernel = size
    ones = (1,) * len(kernel)
    flat = inside * math.prod(kernel)
    if spelling == "loha":
        left, right = (out, rank), (rank, flat)
        return {"hada_w1_a": left, "hada_w1_b": right, "hada_w2_a": left, "hada_w2_b": right, "alpha": ()}
    if spelling == "lokr":
        return {"lokr_w1": (4, 4), "lokr_w2_a": (out // 4, rank), "lokr_w2_b": (rank, flat // 4), "alpha": ()}
    factors = {"lora_down.weight": (rank, inside, *kernel), "lora_up.weight": (out, rank, *ones), "alpha": ()}
    if spelling == "dora":
        return {**factors, "dora_scale": (out, 1, *ones)}
    if spelling in ("diffusers", "diffusers_sdxl", "peft"):
        return {"lora_A.weight": factors["lora_down.weight"], "lora_B.weight": factors["lora_up.weight"]}
    return factors


def named(spelling: str, path: str) -> str:
    """What a module is called."""
    if spelling.startswith("diffusers"):
        return path
    if spelling == "peft":
        return f"base_model.model.{path.removeprefix('unet.')}"
    return (SDXL if spelling == "sdxl" else SD1).kohya_name(path)


def facts(style: Style, draw: random.Random) -> dict[str, str]:
    """What a trainer says of itself, with the captions it counted."""
    tags = {f"{draw.choice(_WORDS)} {draw.choice(_WORDS)} {n}": draw.randrange(1, 90) for n in range(150)}
    buckets = {str(n): {"resolution": [512, 64 * n], "count": draw.randrange(40)} for n in range(4, 16)}
    return {
        "modelspec.title": f"style {draw.randrange(10**6)}",
        "ss_base_model_version": "sdxl_base_v1-0" if "sdxl" in style.spelling else "sd_v1",
        "ss_bucket_info": json.dumps({"buckets": buckets, "mean_img_ar_error": draw.random()}),
        "ss_network_dim": str(style.rank),
        "ss_network_module": "networks.lora",
        "ss_session_id": str(draw.randrange(10**9)),
        "ss_tag_frequency": json.dumps({"10_style": tags}),
        "sshs_model_hash": f"{draw.getrandbits(256):064x}",
        **{f"ss_option_{n}": str(draw.randrange(100)) for n in range(50)},
    }


def _write(path: Path, tensors: Mapping[str, tuple[str, Shape]], metadata: Mapping[str, str]) -> None:
    """A safetensors file in the order of the library: dtypes by alignment, then names; its data are holes."""
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-_SIZES[item[1][0]], item[0])):
        begin, end = end, end + math.prod(shape) * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
