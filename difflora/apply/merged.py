"""A stack written into the weights, and the weights put back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difflora.adapter import Stack
from difflora.apply.mix import Mix

if TYPE_CHECKING:
    from difflora.families.model import Model


class Merged(Mix):
    """One rounding of W0 + Σ weight · ΔW, summed in float32, written into the weights; biases likewise."""

    def __init__(self, model: Model, stack: Stack) -> None:
        super().__init__(model, stack)
        self.rounding = 0.0
        """‖written − wanted‖ / ‖wanted‖ of all changes: the share that rounding to the dtype lost."""

    @torch.no_grad()
    def _update(self) -> None:
        loss = _Loss()
        for path in self.stack.paths():
            weight = self._pristine(path, "weight")
            assert weight is not None, "fits() lets modules with a weight through only"
            bias = self._pristine(path, "bias")
            self._write(path, "weight", weight, self.stack.delta(path, weight), loss)
            change = bias_change(self.stack, path, bias)
            if bias is not None and (change is not None or f"{path}.bias" in self.model.pristine):
                self._write(path, "bias", bias, torch.zeros_like(bias) if change is None else change, loss)
        self.rounding = loss.share

    def _pristine(self, path: str, name: str) -> Tensor | None:
        """The value that a parameter had before anything was merged, on the device of the parameter."""
        live = self.model.module(path)._parameters.get(name)
        if live is None:
            return None
        kept = self.model.pristine.get(f"{path}.{name}", live.detach())
        return kept.to(live.device)

    def _write(self, path: str, name: str, original: Tensor, change: Tensor, loss: _Loss) -> None:
        live = self.model.module(path)._parameters[name]
        assert live is not None
        if f"{path}.{name}" not in self.model.pristine:
            self.model.pristine[f"{path}.{name}"] = original.clone()
            original = self.model.pristine[f"{path}.{name}"]
        live.copy_(original.float() + change)
        if live.dtype != torch.float32:
            loss.add(live.float() - original.float(), change)

    @torch.no_grad()
    def _restore(self) -> None:
        for name, original in self.model.pristine.items():
            path, parameter = name.rsplit(".", 1)
            live = self.model.module(path)._parameters[parameter]
            assert live is not None
            live.copy_(original)
        self.model.pristine.clear()


def bias_change(stack: Stack, path: str, bias: Tensor | None) -> Tensor | None:
    """Σ weight · Δbias of one module (out,) in float32, in canonical order; None if nothing changes it.

    `bias` is the module's pristine bias, None where it has none. Adapters at weight 0 are left out.
    """
    total: Tensor | None = None
    for adapter, dial in stack.canonical():
        weight = dial.of(path)
        for kind in adapter.modules.get(path, ()) if weight != 0.0 else ():
            change = kind.bias_delta(bias)
            if change is not None:
                change = change.float() * weight
                total = change if total is None else total + change
    return total


class _Loss:
    """Adds up what was lost against what was wanted."""

    def __init__(self) -> None:
        self.lost, self.wanted = 0.0, 0.0

    def add(self, written: Tensor, wanted: Tensor) -> None:
        self.lost += float((written - wanted).square().sum())
        self.wanted += float(wanted.square().sum())

    @property
    def share(self) -> float:
        return (self.lost / self.wanted) ** 0.5 if self.wanted else 0.0
