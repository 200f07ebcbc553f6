"""Adapter kinds, one file each. A new kind is one file here and one entry in KINDS."""

from difflora.kinds.kind import Factors, Kind, LiveForm, ScaleOf
from difflora.kinds.lora import LoRA

KINDS: tuple[type[Kind], ...] = (LoRA,)

__all__ = ["KINDS", "Factors", "Kind", "LiveForm", "LoRA", "ScaleOf"]
