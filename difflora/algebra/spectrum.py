"""Singular value decompositions of changes, and how many terms to keep.

They are made inside `one_thread`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difflora.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """ΔW = left · diag(values) · right, float64: left (out, k), values (k,) falling, right (k, rest)."""

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def norm(self) -> float:
        """‖ΔW‖ in Frobenius norm."""
        return float(self.values.norm())

    def error(self, rank: int) -> float:
        """‖ΔW − its best approximation of that rank‖ / ‖ΔW‖: the tail of the singular values.

        Source: Eckart & Young 1936, "The approximation of one matrix by another of lower rank".
        """
        norm = self.norm
        return min(1.0, float(self.values[rank:].norm()) / norm) if norm else 0.0

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of σ / Σσ: 1 for one direction, k for k equal ones, 0 for no change.

        Source: Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality".
        """
        total = self.values.sum()
        if not total:
            return 0.0
        shares = self.values / total
        shares = shares[shares > 0]
        return math.exp(float(-(shares * shares.log()).sum()))


@dataclass(frozen=True, slots=True)
class Target:
    """How many terms to keep, by exactly one of: their number, the share of Σσ² that they hold, or the error
    ‖ΔW − ΔW'‖ / ‖ΔW‖ that is left.

    Raises ConfigError unless exactly one is given and in its range.
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("rank", "energy", "error") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"give exactly one of rank, energy and error; got {', '.join(given) or 'none of them'}"
            )
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank is {self.rank}, expected 1 or more")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(f"energy is {self.energy}, expected a share above 0 and at most 1")
        if self.error is not None and not 0 <= self.error < 1:
            raise ConfigError(f"error is {self.error}, expected 0 or more and less than 1")

    def of(self, values: Tensor) -> int:
        """The number of terms to keep of falling singular values; at least 1."""
        count = len(values)
        if self.rank is not None:
            return min(self.rank, count)
        squares = values.square()
        total = float(squares.sum())
        if not total:
            return 1
        allowed = (1 - self.energy) if self.energy is not None else (self.error or 0.0) ** 2
        # What is left after each number of terms, summed from the small end so that nothing is lost;
        # below 1e-14 there is rounding alone.
        tails = squares.flip(0).cumsum(0).flip(0) / total
        return max(1, int((tails > max(allowed, 1e-14)).sum()))


def pair_spectrum(up: Tensor, down: Tensor) -> Spectrum:
    """That of up (out, R) · down (R, rest), through QR of both and the SVD of an R × R matrix."""
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T)
    return Spectrum(q_up @ left, values, right @ q_down.T)


def dense_spectrum(matrix: Tensor) -> Spectrum:
    """That of a dense (out, rest), through the eigenvectors of the smaller of its Gram matrices in float64.

    Singular values below 1e-7 of the largest are rounding.
    """
    wide = matrix.double()
    if wide.shape[0] > wide.shape[1]:
        tall = dense_spectrum(wide.T)
        return Spectrum(tall.right.T, tall.values, tall.left.T)
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    rows = vectors.T @ wide
    values, order = rows.norm(dim=1).sort(descending=True)
    right = rows[order] / values.clamp_min(torch.finfo(values.dtype).tiny)[:, None]
    return Spectrum(vectors[:, order], values, right)
