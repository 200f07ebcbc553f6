"""Diag-OFT and COFT: rotations of blocks of output rows. Also the files of late 2023 that hold them ready."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds.kind import Kind, ScaleOf
from difflora.kinds.parts import need, number, pristine, read_number, take
from difflora.kinds.rotation import cayley, check_rescale, rescaled, unlimited


@dataclass(frozen=True, slots=True, eq=False)
class OFT(Kind):
    """W0 + ΔW = rescale · (R_kᵀ applied to the k-th block of n output rows of W0).

    blocks (k, n, n) with k · n = out; R_k = (I + Q_k)(I − Q_k)⁻¹, Q_k = B_k − B_kᵀ. `constraint` is what
    files store as alpha (0: none); above 0 (COFT) the norm of Q over all blocks is at most constraint · out.
    `rescale` (out, 1 ...) is one number an output row.

    Weight t means W0 + t · ΔW, a straight line to the rotated weight. LyCORIS rotates by t · R + (1 − t) · I
    before it rescales, which is the same without rescale; kohya rotates the bias along with the output.

    Raises AdapterError if the shapes disagree.
    Source: Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning"; LyCORIS's
    diag-oft, kohya's `networks.oft`.
    """

    name: ClassVar[str] = "oft"
    needs_weight: ClassVar[bool] = True

    blocks: Tensor
    constraint: float = 0.0
    rescale: Tensor | None = None

    def __post_init__(self) -> None:
        _check_blocks("oft_blocks", self.blocks)
        check_rescale(self.rescale, self.out)

    @property
    def out(self) -> int:
        """The number of output rows."""
        return self.blocks.shape[0] * self.blocks.shape[1]

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """oft_blocks unless they are BOFT's, with rescale and alpha."""
        if len(shapes.get("oft_blocks", ())) == 4:
            return frozenset()
        return take(shapes, frozenset({"oft_blocks"}), frozenset({"rescale", "alpha"}))

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """See Kind.from_leaves; alpha is the constraint, and no scale."""
        (blocks,) = need(leaves, "oft_blocks")
        constraint = read_number("alpha", leaves["alpha"]) if "alpha" in leaves else 0.0
        return cls(blocks, constraint, leaves.get("rescale"))

    def to_leaves(self) -> Mapping[str, Tensor]:
        """The tensors as they are; alpha is the constraint."""
        rescale = {} if self.rescale is None else {"rescale": self.rescale}
        return {"oft_blocks": self.blocks, "alpha": number(self.constraint), **rescale}

    def rows(self, start: int, stop: int) -> "OFT | None":
        """Whole blocks, with what the constraint does to them in them; None where the range cuts one."""
        size = self.blocks.shape[1]
        if start % size or stop % size:
            return None
        blocks = unlimited(self.blocks, self.constraint * self.out)[start // size : stop // size]
        rescale = None if self.rescale is None else self.rescale[start:stop].clone()
        return OFT(blocks.clone(), rescale=rescale)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """ΔW in float32; see Kind.delta."""
        base = pristine(self, weight)
        rotation = cayley(self.blocks.to(base.device), self.constraint * self.out)
        return rescaled(_rotated(base, rotation), self.rescale) - base

    def tensors(self) -> Mapping[str, Tensor]:
        """The blocks, the constraint, and rescale if there is one."""
        rescale = {} if self.rescale is None else {"rescale": self.rescale}
        return {"blocks": self.blocks, "constraint": number(self.constraint), **rescale}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if it can rotate a weight of `shape`."""
        return _problem("oft_blocks", self.blocks, shape)


@dataclass(frozen=True, slots=True, eq=False)
class ReadyOFT(Kind):
    """W0 + ΔW = R_kᵀ applied to the k-th block of n output rows of W0, R (k, n, n) as stored.

    Weight t means W0 + t · ΔW.

    Raises AdapterError if the blocks are not square.
    Source: LyCORIS of October and November 2023, `oft_diag`.
    """

    name: ClassVar[str] = "oft_diag"
    needs_weight: ClassVar[bool] = True

    rotation: Tensor

    def __post_init__(self) -> None:
        _check_blocks("oft_diag", self.rotation)

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """oft_diag, and the alpha beside it, which means nothing."""
        return take(shapes, frozenset({"oft_diag"}), frozenset({"alpha"}))

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """See Kind.from_leaves; there is no scale."""
        return cls(*need(leaves, "oft_diag"))

    def to_leaves(self) -> Mapping[str, Tensor]:
        """The blocks as they are."""
        return {"oft_diag": self.rotation}

    def rows(self, start: int, stop: int) -> "ReadyOFT | None":
        """Whole blocks; None where the range cuts one."""
        size = self.rotation.shape[1]
        if start % size or stop % size:
            return None
        return ReadyOFT(self.rotation[start // size : stop // size].clone())

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """ΔW in float32; see Kind.delta."""
        base = pristine(self, weight)
        return _rotated(base, self.rotation.to(base.device, torch.float32)) - base

    def tensors(self) -> Mapping[str, Tensor]:
        """The rotations."""
        return {"rotation": self.rotation}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if it can rotate a weight of `shape`."""
        return _problem("oft_diag", self.rotation, shape)


def _check_blocks(leaf: str, blocks: Tensor) -> None:
    if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2] or 0 in blocks.shape:
        raise AdapterError(f"{leaf} is {tuple(blocks.shape)}; expected (blocks, n, n)")


def _problem(leaf: str, blocks: Tensor, shape: tuple[int, ...]) -> str | None:
    if len(shape) >= 2 and shape[0] == blocks.shape[0] * blocks.shape[1]:
        return None
    rows = f"{blocks.shape[0] * blocks.shape[1]} output rows"
    return f"{leaf} is {tuple(blocks.shape)}, for {rows}, but the layer's weight is {shape}"


def _rotated(base: Tensor, rotation: Tensor) -> Tensor:
    blocks = base.reshape(*rotation.shape[:2], -1)
    return torch.bmm(rotation.transpose(1, 2), blocks).reshape(base.shape)
