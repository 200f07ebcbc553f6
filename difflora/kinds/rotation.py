"""Blocks of rotations: the Cayley transform, and the scales after it."""

import torch
from torch import Tensor

from difflora.errors import AdapterError


def cayley(blocks: Tensor, limit: float) -> Tensor:
    """R = (I + Q)(I − Q)⁻¹ of every block, with Q = B − Bᵀ, in float32.

    `blocks` (..., n, n). If `limit` is above 0, Q is scaled down so that its norm over all blocks is at most
    `limit`. R is orthogonal. Source: Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal
    Finetuning".
    """
    q = blocks.float() - blocks.float().transpose(-1, -2)
    if limit > 0:
        q = q * _within(q, limit)
    eye = torch.eye(q.shape[-1], device=q.device)
    return torch.linalg.solve(eye - q, eye + q)


def unlimited(blocks: Tensor, limit: float) -> Tensor:
    """Blocks that make the same R without the limit: these, or smaller ones, float32, where it is reached."""
    if limit <= 0 or blocks.is_meta:
        return blocks
    factor = _within(blocks.float() - blocks.float().transpose(-1, -2), limit)
    return blocks if factor == 1 else blocks.float() * factor


def _within(q: Tensor, limit: float) -> Tensor:
    """What brings the norm of `q` to `limit` at most."""
    return torch.clamp(limit / (torch.linalg.vector_norm(q) + 1e-8), max=1.0)


def check_rescale(rescale: Tensor | None, out: int) -> None:
    """Raises AdapterError if `rescale` is not (out, 1 ...)."""
    if rescale is not None and (rescale.numel() != out or rescale.shape[:1] != (out,)):
        raise AdapterError(f"rescale is {tuple(rescale.shape)}; expected ({out}, 1)")


def rescaled(weight: Tensor, rescale: Tensor | None) -> Tensor:
    """Every output row of `weight` times its own number."""
    if rescale is None:
        return weight
    return weight * rescale.to(weight.device, weight.dtype).reshape(-1, *[1] * (weight.ndim - 1))
