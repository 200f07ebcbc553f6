"""The two ways to apply a weighted stack of adapters: merged into the weights, or live beside them.

Both leave the module tree and the state-dict names alone, and put everything back on the way out: weights are
copied back from a pristine copy, never restored by subtraction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch

from difflora.adapter import Stack
from difflora.apply.attach import Attached, Forward, attach, detached
from difflora.apply.live import DENSE_LIMIT, Live
from difflora.apply.merged import Merged
from difflora.apply.mix import Mix
from difflora.errors import ApplyError
from difflora.fit import fits

if TYPE_CHECKING:
    from difflora.families.model import Model

__all__ = [
    "DENSE_LIMIT",
    "Attached",
    "Forward",
    "Live",
    "Merged",
    "Mix",
    "Mode",
    "applied",
    "attach",
    "default_mode",
    "detached",
]

Mode = Literal["merged", "live"]


@contextmanager
def applied(
    model: Model, stack: Stack, *, mode: Mode | None = None, dense_limit: int = DENSE_LIMIT
) -> Iterator[Mix]:
    """Applies `stack` to `model` for the length of a `with` block; yields the Mix, whose weights can be
    changed.

    merged: no cost a step; the weights are put back from a pristine copy, bit for bit, whatever happens
            inside.
    live:   two small products a layer for any number of adapters; weights change in milliseconds and may
            differ for each image of a batch (`Live.set_image_weights`); nothing is written into the base.
            What is not of low rank takes memory (`Live.dense_bytes`), at most `dense_limit` bytes.
    None:   `default_mode(model)`.

    A live stack inside a live one adds to it. Raises FitError if an adapter does not fit, ApplyError inside a
    merged stack or beyond `dense_limit`.
    """
    if model.pristine:
        raise ApplyError(
            "this model has a merged stack already; leave that `applied` block before entering another"
        )
    for adapter, _ in stack:
        fits(adapter, model).require()
    if (mode or default_mode(model)) == "merged":
        yield from _merged(model, stack)
    else:
        yield from _live(model, stack, dense_limit)


def default_mode(model: Model) -> Mode:
    """live for bfloat16 (one rounding into bf16 loses small updates) and quantised weights, merged
    otherwise."""
    return "merged" if model.dtype in (torch.float32, torch.float16) else "live"


def _merged(model: Model, stack: Stack) -> Iterator[Mix]:
    mix = Merged(model, stack)
    try:
        mix._update()
        yield mix
    finally:
        mix._restore()


def _live(model: Model, stack: Stack, dense_limit: int) -> Iterator[Mix]:
    mix = Live(model, stack, dense_limit=dense_limit)
    mix._update()
    _forget_compiled(model)
    attached: list[Attached] = []
    try:
        for slot in mix.slots:
            attached.append(attach(slot.layer.module, slot))
        yield mix
    finally:
        for attachment in reversed(attached):
            attachment.detach()


def _forget_compiled(model: Model) -> None:
    """A component compiled before now would go on without the stack: its compiled code is dropped and made
    anew."""
    parts = [model.component(part.name) for part in model.family.components]
    modules = [module for part in parts for module in part.modules()]
    if any(module._compiled_call_impl is not None or hasattr(module, "_orig_mod") for module in modules):
        torch._dynamo.reset()
