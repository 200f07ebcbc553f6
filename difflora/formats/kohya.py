"""The format of kohya's sd-scripts, which A1111, ComfyUI, Forge and diffusers read.

    unet.mid_block.attentions.0.proj_in  <->  lora_unet_mid_block_attentions_0_proj_in.lora_down.weight
                                              lora_unet_mid_block_attentions_0_proj_in.lora_up.weight
                                              lora_unet_mid_block_attentions_0_proj_in.alpha

diffusers (0.42) has two limits with these files: attention modules whose alpha is not that of most are given
that one, and a text encoder is read only if an `out_proj` is among its modules. Its own format has neither.
"""

from collections.abc import Collection
from typing import ClassVar

import torch

from difflora.adapter import Adapter
from difflora.families import Family
from difflora.formats.format import ALPHA, DOWN, UP, Encoded, Format, Metadata, Part, Scale
from difflora.formats.leaves import LEAVES, writable

_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "oft_unet_", "lycoris_")
_SPELLINGS = {"lora_A.weight": DOWN, "lora_B.weight": UP}


class Kohya(Format):
    """Flattened module names, and alpha as a tensor."""

    name: ClassVar[str] = "kohya"
    title: ClassVar[str] = "kohya file"

    @classmethod
    def recognises(cls, names: Collection[str], metadata: Metadata) -> bool:
        """Whether any name has one of kohya's prefixes."""
        return any(name.startswith(_PREFIXES) for name in names)

    @classmethod
    def part(cls, name: str) -> Part | None:
        """Split at the first dot: flattened names have none."""
        module, _, leaf = name.partition(".")
        leaf = _SPELLINGS.get(leaf, leaf)
        return Part(module, leaf) if module.startswith(_PREFIXES) and leaf in LEAVES else None

    @classmethod
    def path(cls, module: str, family: Family) -> str | None:
        """Looked up whole, since "_" stands for itself and for a dot."""
        return family.kohya_names.get(module)

    @classmethod
    def scale(cls, metadata: Metadata) -> Scale:
        """A module without an alpha tensor has alpha = rank, for kohya's own tools too."""
        return lambda module, rank: 1.0

    @classmethod
    def encode(cls, adapter: Adapter, family: Family) -> Encoded:
        """down and up as they are, a convolution's with four dimensions, and alpha as a float32 number."""
        tensors: dict[str, torch.Tensor] = {}
        for path, lora in writable(adapter, cls.title).items():
            module = family.kohya_name(path)
            tensors[f"{module}.{DOWN}"] = lora.down
            tensors[f"{module}.{UP}"] = lora.up
            tensors[f"{module}.{ALPHA}"] = torch.tensor(lora.scale * lora.rank, dtype=torch.float32)
        return Encoded(tensors, {})
