"""The adapters that the tests of libraries are made of."""

import torch

from difflora.adapter import Adapter, AdapterMeta
from difflora.kinds import LoRA

PATH = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def adapter(seed: int) -> Adapter:
    """A LoRA on one layer of the embedded base's family; another seed gives another one."""
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(2, 320, generator=generator), torch.randn(320, 2, generator=generator)
    return Adapter({PATH: (LoRA(down=down, up=up, scale=1.0),)}, AdapterMeta(name="shown", family="sd1"))
