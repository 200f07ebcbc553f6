"""The two ways to apply a weighted stack of adapters: merged into the weights, or live beside them.

Both leave the module tree and the state-dict names alone, and put everything back on the way out: weights are
copied back from a pristine copy, never restored by subtraction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difflora.adapter import Stack, Weight, as_weight
from difflora.errors import ApplyError
from difflora.fit import fits
from difflora.kinds import Factors

if TYPE_CHECKING:
    from difflora.families.model import Model

Mode = Literal["merged", "live"]
Forward = Callable[..., Tensor]


class Mix(ABC):
    """A stack while it is applied to a model."""

    def __init__(self, model: Model, stack: Stack) -> None:
        self.model = model
        self.stack = stack

    def set_weights(self, weights: Sequence[float | Weight]) -> None:
        """Changes the weights, given in the order of the stack, without attaching anything anew.

        Raises AdapterError if their number is not that of the adapters.
        """
        self.stack = self.stack.with_weights(weights)
        self._update()

    @abstractmethod
    def _update(self) -> None: ...


class Merged(Mix):
    """One rounding of W0 + Σ weight · ΔW, summed in float32, written into the weights."""

    def __init__(self, model: Model, stack: Stack) -> None:
        super().__init__(model, stack)
        self.rounding = 0.0
        """‖written − wanted‖ / ‖wanted‖ over all modules: the share of ΔW that rounding to the dtype lost."""

    @torch.no_grad()
    def _update(self) -> None:
        lost, wanted = 0.0, 0.0
        for path in self.stack.paths():
            weight = _weight(self.model, path)
            if path not in self.model.pristine:
                self.model.pristine[path] = weight.detach().clone()
            original = self.model.pristine[path].to(weight.device)
            delta = self.stack.delta(path, original)
            weight.copy_(original.float() + delta)
            if weight.dtype != torch.float32:
                lost += float((weight.float() - original.float() - delta).square().sum())
                wanted += float(delta.square().sum())
        self.rounding = (lost / wanted) ** 0.5 if wanted else 0.0

    @torch.no_grad()
    def _restore(self) -> None:
        for path, original in self.model.pristine.items():
            _weight(self.model, path).copy_(original)
        self.model.pristine.clear()


class Live(Mix):
    """Every adapter of the stack as one concatenated pair of factors beside each layer.

    ΔW = up · diag(s) · down with rank Σ rank_i: two matrix products for any number of adapters, and a weight
    change writes `s` only. Adapters at weight 0 are left out of the pair, so that 0 equals absent bit for
    bit.
    """

    def __init__(self, model: Model, stack: Stack) -> None:
        super().__init__(model, stack)
        self._order = [adapter for adapter, _ in stack.canonical()]
        self._slots = {path: self._slot(path) for path in stack.paths()}

    def set_image_weights(self, rows: Sequence[Sequence[float | Weight]]) -> None:
        """Gives every image of a batch its own mix: one row of weights an image, in the order of the stack.

        Layers must then be called with a multiple of len(rows) rows, row r belonging to image r % len(rows):
        under classifier-free guidance the UNet's rows are [uncond × B, cond × B].
        Raises AdapterError if a row has another number of weights than the stack has adapters.
        """
        stacks = [self.stack.with_weights([as_weight(weight) for weight in row]) for row in rows]
        dials = [self._dials(stack) for stack in stacks]
        for path, slot in self._slots.items():
            slot.set_rows([[row[key].of(path) for key in slot.keys] for row in dials])

    def _update(self) -> None:
        dials = self._dials(self.stack)
        for path, slot in self._slots.items():
            slot.set([dials[key].of(path) for key in slot.keys])

    def _dials(self, stack: Stack) -> dict[str, Weight]:
        return {adapter.data_hash: weight for adapter, weight in stack.canonical()}

    def _slot(self, path: str) -> LiveSlot:
        module = self.model.module(path)
        downs, ups, scales, keys = [], [], [], []
        for adapter in self._order:
            for kind in adapter.modules.get(path, ()):
                factors = kind.factors()
                if factors is None:
                    raise ApplyError(
                        f"{adapter.meta.name!r} changes {path} by a {kind.name}, which has no low-rank form, "
                        "and a live stack needs one. Apply it with mode='merged'."
                    )
                down, up = _for_layer(factors, module)
                downs.append(down)
                ups.append(up)
                scales += [factors.scale] * down.shape[0]
                keys += [adapter.data_hash] * down.shape[0]
        device, dtype = self.model.device, _weight(self.model, path).dtype
        return LiveSlot(
            module,
            torch.cat([down.to(device, dtype) for down in downs]),
            torch.cat([up.to(device, dtype) for up in ups], dim=1),
            scale=torch.tensor(scales, device=device),
            keys=tuple(keys),
        )


class LiveSlot:
    """The concatenated pair of one layer: y + ((x · downᵀ) ∘ s) · upᵀ.

    down (R, in) or (R, in, kh, kw); up (out, R) or (out, R, 1, 1); `scale` (R,) float32; `keys` names the
    adapter of each of the R rank-one terms.
    """

    def __init__(
        self, module: nn.Module, down: Tensor, up: Tensor, *, scale: Tensor, keys: tuple[str, ...]
    ) -> None:
        self.module, self.keys = module, keys
        self._down_all, self._up_all, self._scale = down, up, scale
        self._down, self._up, self._up_base = down, up, up
        self._active: Tensor | None = None
        self._rows: Tensor | None = None
        self._base: Forward | None = None

    def set(self, dials: Sequence[float]) -> None:
        """One weight for each rank-one term, the same for all rows."""
        dial = torch.tensor(dials, dtype=torch.float32, device=self._scale.device)
        scale = self._choose(dial != 0) * dial[dial != 0]
        self._rows = None
        self._up = (self._up_base.float() * _along_rank(scale, self._up_base.ndim)).to(self._up_base.dtype)

    def set_rows(self, dials: Sequence[Sequence[float]]) -> None:
        """One list of weights an image."""
        dial = torch.tensor(dials, dtype=torch.float32, device=self._scale.device)
        used = (dial != 0).any(dim=0)
        self._rows = (self._choose(used) * dial[:, used]).to(self._up_all.dtype)
        self._up = self._up_base

    def _choose(self, used: Tensor) -> Tensor:
        """Keeps the rank-one terms in use and returns their scales; nothing is copied while the choice
        stays."""
        if self._active is None or not torch.equal(self._active, used):
            everything = bool(used.all())
            self._active = used
            self._down = self._down_all if everything else self._down_all[used]
            self._up_base = self._up_all if everything else self._up_all[:, used]
        return self._scale[used]

    def __call__(self, x: Tensor) -> Tensor:
        assert self._base is not None, "called only while attached"
        y = self._base(x)
        if self._down.shape[0] == 0:
            return y
        if isinstance(self.module, nn.Conv2d):
            return self._conv(x, y, self.module)
        t = x.reshape(-1, x.shape[-1]) @ self._down.T
        if self._rows is not None:
            t = (t.view(*x.shape[:-1], -1) * self._row_scales(x)).view(t.shape)
        return torch.addmm(y.reshape(-1, y.shape[-1]), t, self._up.T).view(y.shape)

    def _conv(self, x: Tensor, y: Tensor, conv: nn.Conv2d) -> Tensor:
        t = F.conv2d(x, self._down, None, conv.stride, conv.padding, conv.dilation)
        if self._rows is not None:
            t = t * self._row_scales(x).transpose(1, 3)
        return y + F.conv2d(t, self._up)

    def _row_scales(self, x: Tensor) -> Tensor:
        assert self._rows is not None
        images, rows = self._rows.shape[0], x.shape[0]
        if rows % images:
            raise ApplyError(
                f"{images} images have their own mix, but a layer got {rows} rows, which is no multiple"
            )
        scales = self._rows.repeat(rows // images, 1)
        return scales.view(rows, *([1] * (x.ndim - 2)), -1)


def _weight(model: Model, path: str) -> Tensor:
    weight = model.module(path).weight
    assert isinstance(weight, Tensor), "shapes() lists modules with a weight only"
    return weight


def _along_rank(scale: Tensor, ndim: int) -> Tensor:
    return scale.view(1, -1, *([1] * (ndim - 2)))


def _for_layer(factors: Factors, module: nn.Module) -> tuple[Tensor, Tensor]:
    """down and up with the dimensions that the layer computes with: 2 for Linear, 4 for Conv2d.

    Files hold 2-D factors for 1×1 convolutions and the other way round.
    """
    down, up = factors.down.flatten(1), factors.up.flatten(1)
    if isinstance(module, nn.Conv2d):
        return down.reshape(down.shape[0], -1, *module.kernel_size), up[..., None, None]
    return down, up


@dataclass(frozen=True, slots=True)
class Attached:
    """A forward put in front of a module's own, and what was there before."""

    module: nn.Module
    previous: Forward | None

    def detach(self) -> None:
        """Puts back what was there; attachments must be detached in the opposite order."""
        if self.previous is None:
            del self.module.forward
        else:
            self.module.forward = self.previous


def attach(module: nn.Module, forward: Forward) -> Attached:
    """Calls `forward` wherever `module` is called. The module tree, parameters and state-dict names do not
    change.

    An instance attribute shadows the class's method: nn.Module does not register plain callables, and
    `torch.compile` reads the attribute when it traces (hooks added after a first compiled call are ignored
    without a word).
    """
    previous = module.__dict__.get("forward")
    module.forward = forward
    return Attached(module, previous)


@contextmanager
def applied(model: Model, stack: Stack, *, mode: Mode | None = None) -> Iterator[Mix]:
    """Applies `stack` to `model` for the length of a `with` block; yields the Mix, whose weights can be
    changed.

    merged: no cost a step; the weights are put back from a pristine copy, bit for bit, whatever happens
    inside. live:   two small products a layer for any number of adapters; weights change in microseconds and
    may differ for
            each image of a batch (`Live.set_image_weights`); nothing is written into the base.
    None:   `default_mode(model)`.

    A live stack inside a live one adds to it. Raises FitError if an adapter does not fit, ApplyError inside a
    merged stack.
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
        yield from _live(model, stack)


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


def _live(model: Model, stack: Stack) -> Iterator[Mix]:
    mix = Live(model, stack)
    mix._update()
    _forget_compiled(model)
    attached: list[Attached] = []
    try:
        for slot in mix._slots.values():
            slot._base = slot.module.forward
            attached.append(attach(slot.module, slot))
        yield mix
    finally:
        for attachment in reversed(attached):
            attachment.detach()


def _forget_compiled(model: Model) -> None:
    """A component compiled before now would go on without the stack: its compiled code is dropped and made
    anew."""
    parts = [model.component(part.name) for part in model.family.components]
    if any(part._compiled_call_impl is not None or hasattr(part, "_orig_mod") for part in parts):
        torch._dynamo.reset()
