"""BOFT: rotations of blocks in butterfly order, one after the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds.kind import Kind, ScaleOf
from difflora.kinds.parts import need, number, pristine, read_number
from difflora.kinds.rotation import cayley, check_rescale, rescaled, unlimited


@dataclass(frozen=True, slots=True, eq=False)
class BOFT(Kind):
    """W0 + ΔW = rescale · (R_m … R_2 R_1 W0), every R a rotation of blocks of b output rows.

    blocks (m, k, b, b) with k · b = out and b even; the rotations of stage i (from 0) are those of OFT, and
    their blocks are made of rows 2^i · b / 2 apart. `constraint` is what files store as alpha (0: none);
    above 0 the norm of Q over all blocks is at most constraint · out. `rescale` (out, 1 ...) is one number a
    row.

    Weight t means W0 + t · ΔW, a straight line to the rotated weight. LyCORIS dials every stage instead, by
    t · R + (1 − t) · I; at t = 1 they are the same.

    Raises AdapterError if the shapes disagree.
    Source: Liu et al. 2024, "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization";
    LyCORIS's boft.
    """

    name: ClassVar[str] = "boft"
    needs_weight: ClassVar[bool] = True

    blocks: Tensor
    constraint: float = 0.0
    rescale: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.blocks.shape)
        square = len(shape) == 4 and shape[2] == shape[3] and shape[3] % 2 == 0 and 0 not in shape
        if not square:
            raise AdapterError(f"oft_blocks is {shape}; expected (stages, blocks, b, b) with an even b")
        if self.out % self.span:
            raise AdapterError(f"oft_blocks is {shape}: {self.out} rows have no stage {shape[0]}")
        check_rescale(self.rescale, self.out)

    @property
    def out(self) -> int:
        """The number of output rows."""
        return self.blocks.shape[1] * self.blocks.shape[2]

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """oft_blocks of 4 dimensions, with rescale and alpha."""
        if len(shapes.get("oft_blocks", ())) != 4:
            return frozenset()
        return frozenset({"oft_blocks", "rescale", "alpha"}) & shapes.keys()

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

    @property
    def span(self) -> int:
        """How many rows in a row are mixed with each other and with no others."""
        return 2 ** (self.blocks.shape[0] - 1) * self.blocks.shape[2]

    def rows(self, start: int, stop: int) -> "BOFT | None":
        """Whole spans, with what the constraint does to them in the blocks; None where the range cuts one."""
        if start % self.span or stop % self.span:
            return None
        size = self.blocks.shape[2]
        blocks = unlimited(self.blocks, self.constraint * self.out)[:, start // size : stop // size]
        rescale = None if self.rescale is None else self.rescale[start:stop].clone()
        return BOFT(blocks.clone(), rescale=rescale)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """ΔW in float32; see Kind.delta."""
        base = pristine(self, weight)
        turned = base.flatten(1)
        rotations = cayley(self.blocks.to(base.device), self.constraint * self.out)
        size = self.blocks.shape[2]
        for stage, rotation in enumerate(rotations):
            apart = 2**stage * size // 2
            gathered = turned.unflatten(0, (-1, 2, apart)).transpose(1, 2)
            done = torch.bmm(rotation, gathered.reshape(-1, size, turned.shape[1]))
            turned = done.reshape(-1, apart, 2, turned.shape[1]).transpose(1, 2).reshape(turned.shape)
        return rescaled(turned.reshape(base.shape), self.rescale) - base

    def tensors(self) -> Mapping[str, Tensor]:
        """The blocks, the constraint, and rescale if there is one."""
        rescale = {} if self.rescale is None else {"rescale": self.rescale}
        return {"blocks": self.blocks, "constraint": number(self.constraint), **rescale}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if it can rotate a weight of `shape`."""
        if len(shape) >= 2 and shape[0] == self.out:
            return None
        rows = f"{self.out} output rows"
        return f"oft_blocks is {tuple(self.blocks.shape)}, for {rows}, but the layer's weight is {shape}"
