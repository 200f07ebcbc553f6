"""The format of diffusers and PEFT: dotted module names, and alpha in a JSON text among the metadata.

    unet.mid_block.attentions.0.proj_in  <->  unet.mid_block.attentions.0.proj_in.lora_A.weight  (down)
                                              unet.mid_block.attentions.0.proj_in.lora_B.weight  (up)

What is lost: a program that does not read `lora_adapter_metadata` (diffusers before 0.35, ComfyUI) takes
alpha = rank, so it shows an adapter of scale s at 1/s of its strength; with alpha = rank nothing is lost.
"""

import re
from collections.abc import Collection
from typing import ClassVar

import torch

from difflora.adapter import Adapter
from difflora.families import Family
from difflora.formats.format import ALPHA, DOWN, UP, Encoded, Format, Metadata, Part, Scale
from difflora.formats.leaves import FOREIGN, writable
from difflora.formats.peft_config import METADATA_KEY, TEXT_LEVEL, component_of, config_text, scales

# Spelling -> leaf; the first that matches counts. The adapter's name may be left in: "lora_A.default.weight".
_SPELLINGS = (
    (r"\.lora_B\.bias", "lora_up.bias"),
    (r"\.lora_magnitude_vector(\.\w+)*", "dora_scale"),
    (r"\.lora_A(\.\w+)?(\.weight)?", DOWN),
    (r"\.lora_B(\.\w+)?(\.weight)?", UP),
    (r"(\.lora|_lora|\.lora_linear_layer)\.down\.weight", DOWN),
    (r"(\.lora|_lora|\.lora_linear_layer)\.up\.weight", UP),
    (r"\.lora_down\.weight", DOWN),
    (r"\.lora_up\.weight", UP),
    (r"\.alpha", ALPHA),
)
_SUFFIXES = tuple((re.compile(rf"(.+?){spelling}"), leaf) for spelling, leaf in _SPELLINGS)
_FOREIGN = tuple(
    leaf for leaf in FOREIGN if leaf not in ("weight", "bias", "scale")
)  # a whole layer has these

# Attention processors of 2023 had names of their own for the projections.
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class Diffusers(Format):
    """Dotted module names with PEFT's lora_A (down) and lora_B (up); older spellings are read."""

    name: ClassVar[str] = "diffusers"
    title: ClassVar[str] = "diffusers file"

    @classmethod
    def recognises(cls, names: Collection[str], metadata: Metadata) -> bool:
        """Whether any name is a factor's. `save_lora_adapter` writes a UNet's without a component."""
        parts = (cls.part(name) for name in names if not name.startswith("base_model."))
        return any(part is not None and part.leaf != ALPHA and "." in part.module for part in parts)

    @classmethod
    def part(cls, name: str) -> Part | None:
        """Split before the spelling of the factor."""
        for pattern, leaf in _SUFFIXES:
            if match := pattern.fullmatch(name):
                return Part(match[1], leaf)
        for leaf in _FOREIGN:
            if name.endswith(f".{leaf}"):
                return Part(name.removesuffix(f".{leaf}"), leaf)
        return None

    @classmethod
    def path(cls, module: str, family: Family) -> str | None:
        """With the component, with the text_model level, and without the attention processor of old files."""
        component, inner = component_of(module.replace(".processor.", "."))
        if component.startswith("text_encoder"):
            inner = inner if inner.startswith((TEXT_LEVEL, "text_projection")) else TEXT_LEVEL + inner
            head, _, last = inner.rpartition(".")
            inner = f"{head}.{_OLD_TEXT.get(last, last)}" if head else last
        elif inner.endswith(".to_out"):
            inner += ".0"
        path = f"{component or 'unet'}.{inner}"
        return path if path in family.paths else None

    @classmethod
    def scale(cls, metadata: Metadata) -> Scale:
        """From the configuration in the metadata; 1 without one."""
        return scales(metadata)

    @classmethod
    def encode(cls, adapter: Adapter, family: Family) -> Encoded:
        """down and up as they are, and the configuration that gives each its scale."""
        modules = writable(adapter, cls.title)
        tensors: dict[str, torch.Tensor] = {}
        for path, lora in modules.items():
            tensors[f"{path}.lora_A.weight"] = lora.down
            tensors[f"{path}.lora_B.weight"] = lora.up
        return Encoded(tensors, {"format": "pt", METADATA_KEY: config_text(modules)})
