"""What every adapter kind promises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from torch import Tensor


class Factors(NamedTuple):
    """A low-rank form: ΔW = scale · up @ down.

    `down` is (rank, in) or (rank, in, kh, kw); `up` is (out, rank) or (out, rank, 1, 1).
    """

    down: Tensor
    up: Tensor
    scale: float


class Kind(ABC):
    """One change of one module.

    Every kind is linear in the weight t that a user dials, by definition: the module's weight becomes
    W0 + t · delta(W0), where W0 is always the pristine base weight.
    """

    name: ClassVar[str]
    needs_weight: ClassVar[bool]

    @abstractmethod
    def delta(self, weight: Tensor | None = None) -> Tensor:
        """ΔW in float32, in the shape of `weight`, or (out, rest) when no weight is given.

        Raises NeedsBase if `needs_weight` is true and there is no weight, AdapterError if the shapes
        disagree.
        """

    def bias_delta(self, bias: Tensor | None = None) -> Tensor | None:
        """The change of the module's bias (out,) in float32; None where this kind leaves the bias alone."""
        return None

    def factors(self) -> Factors | None:
        """The exact low-rank form of this change; None where it has none."""
        return None

    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """The named tensors that define this change, as stored; `scale` and the like are 0-d float32."""

    @abstractmethod
    def problem(self, shape: tuple[int, ...]) -> str | None:
        """Why this change does not fit a weight of `shape`, in the words of an error message; None if it
        fits."""
