"""Trainable full difference."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from difflora.errors import CheckpointError
from difflora.inject.trainable import Dense, Layer
from difflora.kinds import Full, Kind


class TrainedFull(Dense):
    """diff in the shape of the weight, and bias (out,) where the layer has one: both start at zero."""

    has_rank: ClassVar[bool] = False

    @staticmethod
    def start(layer: Layer) -> dict[str, Tensor]:
        """See Trainable.start."""
        diff = {"diff": torch.zeros(layer.shape)}
        return diff if layer.module.bias is None else {**diff, "bias": torch.zeros(layer.shape[0])}

    def delta(self) -> Tensor:
        """See Dense.delta."""
        return self.parameters["diff"]

    def bias_delta(self) -> Tensor | None:
        """See Dense.bias_delta."""
        return self.parameters.get("bias")

    def kind(self, dtype: torch.dtype) -> Full:
        """See Trainable.kind."""
        return Full(self.copy("diff", dtype), self.copy("bias", dtype) if "bias" in self.parameters else None)

    def values(self, kind: Kind) -> Mapping[str, Tensor]:
        """See Trainable.values."""
        if not isinstance(kind, Full) or set(self.parameters) != set(kind.tensors()):
            raise CheckpointError(f"{self.path}: the checkpoint has a {kind.name} here, this run a full")
        return kind.tensors()
