"""The two ways to apply a weighted stack of adapters: merged into the weights, or live beside them.

Both leave the module tree and the state-dict names alone, and put everything back on the way out: weights are
copied back from a pristine copy, never restored by subtraction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from difflora.adapter import Stack
from difflora.apply.attach import Attached, Forward, attach, detached
from difflora.apply.group import Slot
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
    "mode_of",
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
    None:   `default_mode(model)`, and merged where that is live and cannot be; `mode_of(mix)` says which.

    A live stack inside a live one adds to it. Raises FitError if an adapter does not fit, ApplyError inside a
    merged stack, for a merged one inside a live one, or, if live was asked for, beyond `dense_limit`.
    """
    if model.pristine:
        raise ApplyError(
            "this model has a merged stack already; leave that `applied` block before entering another"
        )
    for adapter, _ in stack:
        fits(adapter, model).require()
    mix = _mix(model, stack, mode, dense_limit)
    yield from _live(model, mix) if isinstance(mix, Live) else _merged(mix)


def default_mode(model: Model) -> Mode:
    """live for bfloat16 (one rounding into bf16 loses small updates), quantised weights, and inside another
    live stack; merged otherwise."""
    if model.dtype not in (torch.float32, torch.float16) or _has_live(model):
        return "live"
    return "merged"


def mode_of(mix: Mix) -> Mode:
    """How a mix is applied."""
    return "live" if isinstance(mix, Live) else "merged"


def _mix(model: Model, stack: Stack, mode: Mode | None, dense_limit: int) -> Merged | Live:
    if (mode or default_mode(model)) == "merged":
        if len(stack) and _has_live(model):
            raise ApplyError(
                "this model has a live stack, which may not see what is merged into the weights; leave that "
                "`applied` block before entering this one, or use mode='live', which adds to it"
            )
        return Merged(model, stack)
    try:
        return Live(model, stack, dense_limit=dense_limit)
    except ApplyError:
        if mode is not None or not model.dtype.is_floating_point or _has_live(model):
            raise
        return Merged(model, stack)


def _has_live(model: Model) -> bool:
    """Whether a live stack is attached to any layer."""
    return any(isinstance(module.__dict__.get("forward"), Slot) for module in _modules(model))


def _modules(model: Model) -> Iterator[nn.Module]:
    for part in model.family.components:
        yield from model.component(part.name).modules()


def _merged(mix: Merged) -> Iterator[Mix]:
    try:
        mix._update()
        yield mix
    finally:
        mix._restore()


def _live(model: Model, mix: Live) -> Iterator[Mix]:
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
    if any(
        module._compiled_call_impl is not None or hasattr(module, "_orig_mod") for module in _modules(model)
    ):
        torch._dynamo.reset()
