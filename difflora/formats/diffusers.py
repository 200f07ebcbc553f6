"""The format of diffusers: dotted module names, and alpha in a JSON text among the metadata.

    unet.mid_block.attentions.0.proj_in  <->  unet.mid_block.attentions.0.proj_in.lora_A.weight  (down)
                                              unet.mid_block.attentions.0.proj_in.lora_B.weight  (up)

It holds LoRA, DoRA and the biases of both. Read as well are all other dotted names: those of ComfyUI
("diffusion_model.input_blocks..."), ai-toolkit, OneTrainer, XLabs and original checkpoints, with any kind.

What is lost: a program that does not read `lora_adapter_metadata` (diffusers before 0.35, ComfyUI) takes
alpha = rank, so it shows an adapter of scale s at 1/s of its strength; with alpha = rank nothing is lost.
"""

import re
from collections.abc import Collection
from typing import ClassVar

from difflora.adapter import Adapter
from difflora.families import Family
from difflora.formats.format import ALPHA, Encoded, Format, Metadata, Part, Scale
from difflora.formats.peft_config import METADATA_KEY, config_text, scales
from difflora.formats.peft_modules import encoded_modules
from difflora.formats.suffixes import dotted

# Attention processors of 2023 had a level of their own, and in text encoders names of their own.
_PROCESSOR = re.compile(r"(attn\d?)\.processor\.")
_OLD_TEXT = re.compile(r"(\.self_attn)\.to_(q|k|v|out)")


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
        """Split before the spelling of the leaf; what only old files have in a module's name is left out."""
        part = dotted(name)
        return part and Part(modern(part.module), part.leaf)

    @classmethod
    def scale(cls, metadata: Metadata, modules: Collection[str]) -> Scale:
        """From the configuration in the metadata; 1 without one."""
        return scales(metadata, modules)

    @classmethod
    def encode(cls, adapter: Adapter, family: Family) -> Encoded:
        """down and up as they are, and the configuration that gives each its scale."""
        modules = encoded_modules(adapter, cls.title)
        tensors = {
            f"{path}.{suffix}": tensor
            for path, module in modules.items()
            for suffix, tensor in module.factors.items()
        }
        return Encoded(tensors, {"format": "pt", METADATA_KEY: config_text(modules)})


def modern(module: str) -> str:
    """A module's name as diffusers has it today."""
    module = _PROCESSOR.sub(r"\1.", module)
    module = _OLD_TEXT.sub(lambda match: f"{match[1]}.{match[2]}_proj", module)
    return f"{module}.0" if module.endswith(".to_out") else module
