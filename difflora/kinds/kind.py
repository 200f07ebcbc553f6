"""What every adapter kind promises."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple, Self, TypeAlias

from torch import Tensor


class Factors(NamedTuple):
    """A low-rank form: ΔW = scale · up @ down.

    `down` is (rank, in), (rank, in, kh, kw) or, for a kernel too, (rank, in·kh·kw); `up` is (out, rank) or
    (out, rank, 1, 1). A kind whose factors would be no smaller than ΔW itself has none.
    """

    down: Tensor
    up: Tensor
    scale: float


class LiveForm(NamedTuple):
    """How a change acts beside its layer: ΔW = diag(gain) · W0 + scale · up @ down; a missing part is zero.

    `gain` (out,) acts on the layer's output without its bias.
    """

    gain: Tensor | None
    factors: Factors | None


ScaleOf: TypeAlias = Callable[[int], float]
"""The scale that a file says of a module, given the rank of its factors: alpha / rank, or 1 without alpha."""


class Kind(ABC):
    """One change of one module.

    Every kind is linear in the weight t that a user dials, by definition: the module's weight becomes
    W0 + t · delta(W0), where W0 is always the pristine base weight.

    In files a kind is a group of tensors, each known by its leaf: what follows the module's name, in the
    spelling of kohya and LyCORIS ("lora_down.weight", "hada_w1_a", "alpha" ...).
    """

    name: ClassVar[str]
    needs_weight: ClassVar[bool]

    @classmethod
    @abstractmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """Which of a module's leaves (given with their shapes) make up this kind; empty if it is not there.

        An incomplete kind claims what there is of it, so that its reader can name what is missing.
        """

    @classmethod
    @abstractmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """The kind that the claimed `leaves` define; those that are no alpha / rank are taken as stored.

        Raises AdapterError if a leaf is missing or the shapes disagree.
        """

    @abstractmethod
    def to_leaves(self) -> Mapping[str, Tensor]:
        """The inverse of `from_leaves`, "alpha" (0-d, float32) included where the kind has one."""

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

    def live_form(self, weight: Tensor) -> LiveForm | None:
        """How it acts beside a layer of weight `weight` without a dense ΔW; None where it needs one."""
        factors = self.factors()
        return None if factors is None else LiveForm(None, factors)

    def times(self, weight: float) -> "Kind | None":
        """The kind whose delta is weight · delta, biases too; None where no kind is (delta depends on W0)."""
        return None

    def rows(self, start: int, stop: int) -> "Kind | None":
        """The change of the output rows start to stop alone, as where one layer stands for three fused ones;
        None where there is no such kind."""
        return None

    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """The named tensors that define this change, as stored; `scale` and the like are 0-d float32."""

    @abstractmethod
    def problem(self, shape: tuple[int, ...]) -> str | None:
        """Why this change does not fit a weight of `shape`, in the words of an error message; None if it
        fits."""
