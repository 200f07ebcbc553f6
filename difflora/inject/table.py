"""The kinds that can be trained, one row each."""

from collections.abc import Mapping

from difflora.inject.dora import TrainedDoRA
from difflora.inject.full import TrainedFull
from difflora.inject.loha import TrainedLoHa
from difflora.inject.lokr import TrainedLoKr
from difflora.inject.lora import TrainedLoRA, TrainedPissa
from difflora.inject.trainable import Trainable

# kind -> how it starts -> what trains it
TRAINABLE: Mapping[str, Mapping[str, type[Trainable]]] = {
    "lora": {"default": TrainedLoRA, "pissa": TrainedPissa},
    "dora": {"default": TrainedDoRA},
    "loha": {"default": TrainedLoHa},
    "lokr": {"default": TrainedLoKr},
    "full": {"default": TrainedFull},
}
