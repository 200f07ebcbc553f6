"""The only source of randomness in training: every number is a pure function of a seed and a key.

No generator state is carried from step to step, so a run resumed from any checkpoint draws what the
uninterrupted one would, and any number of processes draws what one does. Everything is drawn on the CPU.
"""

import hashlib

import torch
from torch import Tensor

Key = int | str


def generator(seed: int, *key: Key) -> torch.Generator:
    """A CPU generator for one purpose: `generator(7, "noise", step, index)`.

    The key is hashed (sha256), so neighbouring steps and seeds are unrelated.
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in key)])
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
    return torch.Generator("cpu").manual_seed(number)


def normal(shape: tuple[int, ...], seed: int, *key: Key) -> Tensor:
    """Standard normal numbers, float32."""
    return torch.randn(shape, generator=generator(seed, *key))


def uniform(seed: int, *key: Key) -> float:
    """One number in [0, 1)."""
    return float(torch.rand((), generator=generator(seed, *key)))


def integer(limit: int, seed: int, *key: Key) -> int:
    """One integer in [0, limit)."""
    return int(torch.randint(limit, (), generator=generator(seed, *key)))


def permutation(count: int, seed: int, *key: Key) -> list[int]:
    """0 .. count-1 in random order."""
    return torch.randperm(count, generator=generator(seed, *key)).tolist()
