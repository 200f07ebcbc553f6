"""Adapter kinds, one file each. A new kind is one file here and one entry in KINDS."""

from difflora.kinds.bias import Bias
from difflora.kinds.boft import BOFT
from difflora.kinds.dora import DoRA
from difflora.kinds.full import Full
from difflora.kinds.glora import GLoRA
from difflora.kinds.ia3 import IA3
from difflora.kinds.kind import Factors, Kind, LiveForm, ScaleOf
from difflora.kinds.loha import LoHa
from difflora.kinds.lokr import LoKr
from difflora.kinds.lora import LoRA
from difflora.kinds.norm import Norm
from difflora.kinds.oft import OFT, ReadyOFT
from difflora.kinds.replace import Replace

KINDS: tuple[type[Kind], ...] = (
    DoRA,  # before the kinds that it may hold
    LoRA,
    LoHa,
    LoKr,
    GLoRA,
    Full,
    Norm,
    Replace,
    BOFT,
    OFT,
    ReadyOFT,
    IA3,
    Bias,
)
"""In the order in which each is asked to claim from the leaves that those before it left."""

__all__ = [
    "BOFT",
    "IA3",
    "KINDS",
    "OFT",
    "Bias",
    "DoRA",
    "Factors",
    "Full",
    "GLoRA",
    "Kind",
    "LiveForm",
    "LoHa",
    "LoKr",
    "LoRA",
    "Norm",
    "ReadyOFT",
    "Replace",
    "ScaleOf",
]
