"""What every trainable kind promises."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difflora.apply import Forward
from difflora.draws import generator
from difflora.kinds import Kind


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer that is to be trained, and what its factors are made from.

    `shape` is that of its weight, (out, in) or (out, in, kh, kw); `scale` is alpha / rank (or what rsLoRA
    has in its place).
    """

    path: str
    module: nn.Linear | nn.Conv2d
    shape: tuple[int, ...]
    rank: int
    scale: float
    seed: int
    lokr_factor: int | None = None

    @property
    def columns(self) -> int:
        """in · kh · kw."""
        return math.prod(self.shape[1:])

    @property
    def is_plain(self) -> bool:
        """Whether it computes x Wᵀ + b and nothing else: no subclass, no forward in front of its own."""
        return type(self.module) in (nn.Linear, nn.Conv2d) and "forward" not in self.module.__dict__

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Numbers from U(−1/√n, 1/√n), n = the size of a row: kaiming uniform with a = √5, as peers do.

        A pure function of the seed, the name and the path.
        """
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        return torch.empty(shape).uniform_(-bound, bound, generator=generator(self.seed, name, self.path))

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers, a pure function of the seed, the name and the path."""
        return torch.randn(shape, generator=generator(self.seed, name, self.path))

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """What the layer computes, with another weight of its shape in x's dtype."""
        if isinstance(self.module, nn.Linear):
            return F.linear(x, weight, bias)
        conv = self.module
        assert not isinstance(conv.padding, str), "diffusers gives convolutions numbers"
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class Trainable(ABC):
    """A kind of adapter while it is trained beside one layer.

    `parameters` are what is trained, float32 whatever the base's dtype, by the names that `start` gives.
    """

    has_rank: ClassVar[bool] = True
    """Whether rank, alpha and rsLoRA mean anything to it."""

    def __init__(self, layer: Layer, parameters: Mapping[str, nn.Parameter]) -> None:
        self.layer = layer
        self.parameters = parameters

    @property
    def path(self) -> str:
        """The path of the layer."""
        return self.layer.path

    @staticmethod
    @abstractmethod
    def start(layer: Layer) -> dict[str, Tensor]:
        """The parameters before the first step; with them every output is bit-identical to the base."""

    @abstractmethod
    def forward(self) -> Forward:
        """The layer's forward with what is trained, built on the one it has now."""

    @abstractmethod
    def kind(self, dtype: torch.dtype) -> Kind:
        """A copy of what has been learned, on the CPU, its tensors in `dtype`."""

    @abstractmethod
    def values(self, kind: Kind) -> Mapping[str, Tensor]:
        """The parameters of which `kind` was made in float32. Raises CheckpointError on another kind."""

    def copy(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of one parameter on the CPU."""
        return self.parameters[name].detach().to("cpu", dtype, copy=True)


class Dense(Trainable):
    """A trainable kind that acts through the whole ΔW."""

    @abstractmethod
    def delta(self) -> Tensor:
        """ΔW in the shape of the layer's weight, float32, with its gradient."""

    def bias_delta(self) -> Tensor | None:
        """The change of the bias, if there is one."""
        return None

    def forward(self) -> Forward:
        """One product with W + ΔW where both are float32; else two, for a sum in half precision would round
        small updates away."""
        module, base = self.layer.module, self.layer.module.forward
        if self.layer.is_plain and module.weight.dtype == torch.float32:
            return self._summed

        def beside(x: Tensor) -> Tensor:
            bias = self.bias_delta()
            bias = None if bias is None else bias.to(x.dtype)
            return base(x) + self.layer.compute(x, self.delta().to(x.dtype), bias)

        return beside

    def _summed(self, x: Tensor) -> Tensor:
        module, bias = self.layer.module, self.bias_delta()
        if bias is not None and module.bias is not None:
            bias = module.bias + bias
        return self.layer.compute(x, module.weight + self.delta(), module.bias if bias is None else bias)
