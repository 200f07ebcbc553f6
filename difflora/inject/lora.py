"""Trainable LoRA: on convolutions also called LoCon."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difflora.apply import Forward
from difflora.errors import CheckpointError
from difflora.inject.trainable import Layer, Trainable
from difflora.kinds import Kind, LoRA
from difflora.threads import one_thread


class TrainedLoRA(Trainable):
    """down (rank, in...) and up (out, rank...): down starts at random, up at zero."""

    @staticmethod
    def start(layer: Layer) -> dict[str, Tensor]:
        """See Trainable.start."""
        out, rest = layer.shape[0], layer.shape[1:]
        down = layer.uniform("down", (layer.rank, *rest))
        return {"down": down, "up": torch.zeros(out, layer.rank, *([1] * (len(rest) - 1)))}

    def pair(self) -> tuple[Tensor, Tensor]:
        """The down and up that act."""
        return self.parameters["down"], self.parameters["up"]

    def forward(self) -> Forward:
        """Fused for a plain frozen Linear, else beside whatever the layer does."""
        module, base, scale = self.layer.module, self.layer.module.forward, self.layer.scale
        if isinstance(module, nn.Linear) and self.layer.is_plain:
            return lambda x: _LoRALinear.apply(x, module.weight, module.bias, *self.pair(), scale)

        def beside(x: Tensor) -> Tensor:
            down, up = (part.to(x.dtype) for part in self.pair())
            product = F.linear if isinstance(module, nn.Linear) else F.conv2d
            return base(x) + product(self.layer.compute(x, down), up * scale)

        return beside

    def kind(self, dtype: torch.dtype) -> Kind:
        """See Trainable.kind."""
        return self.lora(dtype)

    def lora(self, dtype: torch.dtype) -> LoRA:
        """A copy of the pair on the CPU."""
        down, up = (part.detach().to("cpu", dtype, copy=True) for part in self.pair())
        return LoRA(down, up, self.layer.scale)

    def values(self, kind: Kind) -> Mapping[str, Tensor]:
        """See Trainable.values."""
        if type(kind) is not LoRA:
            raise CheckpointError(f"{self.path}: the checkpoint has a {kind.name} here, this run a lora")
        return {"down": kind.down, "up": kind.up}


class TrainedPissa(TrainedLoRA):
    """LoRA that starts at the principal singular directions of W0, and changes W0 by what it moves away.

    With W0 = U S Vᵀ, up0 = U √S / √scale and down0 = √S Vᵀ / √scale, cut to the rank, the layer computes
    with W0 + scale · (up · down − up0 · down0). Trained are the differences δ from the start, which are zero
    at first:

        up · down − up0 · down0 = δup · (down0 + δdown) + up0 · δdown

    is a pair of twice the rank, exact relative to the true W0, and small where little was learned, so that
    storing it in half precision loses little. W0 itself is never changed, and weight decay pulls to the
    start.
    Source: Meng et al. 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation of LLMs".
    """

    def __init__(self, layer: Layer, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(layer, parameters)
        self._down, self._up = (part.to(parameters["up"].device) for part in _principal(layer))

    @staticmethod
    def start(layer: Layer) -> dict[str, Tensor]:
        """See Trainable.start."""
        zeros = {name: torch.zeros_like(tensor) for name, tensor in TrainedLoRA.start(layer).items()}
        return {"down": zeros["down"], "up": zeros["up"]}

    def pair(self) -> tuple[Tensor, Tensor]:
        """The pair of twice the rank."""
        down, up = self.parameters["down"], self.parameters["up"]
        return torch.cat([self._down + down, down]), torch.cat([up, self._up], dim=1)

    def values(self, kind: Kind) -> Mapping[str, Tensor]:
        """See Trainable.values."""
        both, rank = super().values(kind), self.parameters["down"].shape[0]
        return {"down": both["down"][rank:], "up": both["up"][:, :rank]}


@torch.no_grad()
def _principal(layer: Layer) -> tuple[Tensor, Tensor]:
    """down0 and up0 in the shapes of down and up; terms beyond the rank of W0 are zero, and stay so."""
    weight = layer.module.weight.detach().to("cpu", torch.float32)
    with one_thread():
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    rank = min(layer.rank, len(s))
    root = s[:rank].sqrt() / math.sqrt(layer.scale)
    start = {name: torch.zeros_like(tensor) for name, tensor in TrainedLoRA.start(layer).items()}
    start["down"][:rank] = (root[:, None] * v[:rank]).view_as(start["down"][:rank])
    start["up"][:, :rank] = (u[:, :rank] * root).view_as(start["up"][:, :rank])
    return start["down"], start["up"]


class _LoRALinear(torch.autograd.Function):
    """y = x Wᵀ + b + scale · (x downᵀ) upᵀ with W and b frozen.

    x (..., in), W (out, in), down (rank, in) and up (out, rank) float32; the products run in x's dtype. Saves
    x alone and computes x downᵀ again in the backward pass, which costs less than keeping it (Cherniuk et al.
    2023, "RunLoRA").
    """

    @staticmethod
    def forward(ctx, x, weight, bias, down, up, scale):  # type: ignore[override]
        ctx.save_for_backward(x, weight, down, up)
        ctx.scale = scale
        rows = x.reshape(-1, x.shape[-1])
        if _is_cheaper_summed(rows, weight):
            y = F.linear(rows, torch.addmm(weight, up, down, alpha=scale), bias)
        else:
            y = F.linear(rows, weight, bias)
            y.addmm_(rows @ down.to(x.dtype).T, up.to(x.dtype).T, alpha=scale)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, weight, down, up = ctx.saved_tensors
        small_down, small_up = down.to(x.dtype), up.to(x.dtype) * ctx.scale
        rows, dy = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        dt = dy @ small_up
        dx = None
        if ctx.needs_input_grad[0] and _is_cheaper_summed(rows, weight):
            dx = (dy @ torch.addmm(weight, small_up, small_down)).view(x.shape)
        elif ctx.needs_input_grad[0]:
            dx = (dy @ weight).addmm_(dt, small_down).view(x.shape)
        d_down = (dt.T @ rows).to(down.dtype)
        d_up = (dy.T @ (rows @ small_down.T)).mul_(ctx.scale).to(up.dtype)
        return dx, None, None, d_down, d_up, None


def _is_cheaper_summed(rows: Tensor, weight: Tensor) -> bool:
    """Whether x (W + ΔW)ᵀ takes less work than adding the two small products to x Wᵀ.

    In float32 only: a sum in half precision would round small updates away.
    """
    out, columns = weight.shape
    return weight.dtype == torch.float32 and rows.shape[0] * (out + columns) > 2 * out * columns
