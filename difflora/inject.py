"""Attach trainable LoRA factors beside the layers of a model, and collect them back into an Adapter."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from difflora.adapter import Adapter, AdapterMeta
from difflora.apply import Forward, attach
from difflora.draws import generator
from difflora.errors import CheckpointError, ConfigError, listing
from difflora.kinds import LoRA

if TYPE_CHECKING:
    from difflora.families.model import Model

_ATTENTION = r"\.attn[12]\.to_(q|k|v|out\.0)$"
_TEXT_ATTENTION = r"\.self_attn\.(q|k|v|out)_proj$"

# A pattern is searched in the dotted path. `None` in place of a pattern takes every layer of the given types.
TARGETS: dict[str, tuple[str, str, tuple[type[nn.Module], ...]]] = {
    "attn": (_ATTENTION, _TEXT_ATTENTION, (nn.Linear,)),
    "attn+ff": (_ATTENTION + r"|\.ff\.net\.(0\.proj|2)$", _TEXT_ATTENTION, (nn.Linear,)),
    # SD 1.x stores the projections into and out of a transformer block as 1×1 convolutions.
    "all-linear": (r"", _TEXT_ATTENTION + r"|\.mlp\.fc[12]$", (nn.Linear,)),
    "all": (r"", _TEXT_ATTENTION + r"|\.mlp\.fc[12]$", (nn.Linear, nn.Conv2d)),
}
_PROJECTION = re.compile(r"\.proj_(in|out)$")


class NetworkOptions(BaseModel):
    """What is trained: which layers get factors, and of what rank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(
        16,
        ge=1,
        le=1024,
        description="Rank of the factors: more learns finer detail, and makes larger files.",
    )
    alpha: float | None = Field(
        None,
        gt=0,
        description="The update is scaled by alpha / rank. Default: equal to the rank, a scale of 1.",
    )
    targets: str = Field(
        "attn",
        description="Layers that get factors: attn, attn+ff, all-linear, all (with convolutions), or regular "
        "expressions over layer paths, separated by commas.",
    )
    train_unet: bool = Field(True, description="Train factors in the UNet.")
    train_text_encoder: bool = Field(False, description="Train factors in the text encoders as well.")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return (self.alpha if self.alpha is not None else self.rank) / self.rank


def targets(model: Model, options: NetworkOptions) -> tuple[str, ...]:
    """The paths that `options` select in `model`, in the model's order.

    Raises ConfigError if a pattern is no regular expression or selects nothing.
    """
    wanted = [part.name for part in model.family.components if _is_trained(part.is_text, options)]
    layers = {path: model.module(path) for path in model.shapes() if path.split(".", 1)[0] in wanted}
    layers = {path: layer for path, layer in layers.items() if isinstance(layer, nn.Linear | nn.Conv2d)}
    if options.targets in TARGETS:
        chosen = [path for path, layer in layers.items() if _in_preset(path, layer, options.targets)]
    else:
        chosen = _matching(layers, options.targets)
    if not chosen:
        raise ConfigError(
            f"targets={options.targets!r} selects no layer of {model.facts.name}. "
            f"Use one of {', '.join(TARGETS)}, or a pattern such as 'attn2\\.to_[kv]$', and check "
            "train_unet and train_text_encoder."
        )
    return tuple(chosen)


def _is_trained(is_text: bool, options: NetworkOptions) -> bool:
    return options.train_text_encoder if is_text else options.train_unet


def _in_preset(path: str, layer: nn.Module, preset: str) -> bool:
    unet, text, types = TARGETS[preset]
    if path.startswith("text_encoder"):
        return re.search(text, path) is not None
    is_projection = preset == "all-linear" and _PROJECTION.search(path) is not None
    return is_projection or (isinstance(layer, types) and re.search(unet, path) is not None)


def _matching(paths: Iterable[str], patterns: str) -> list[str]:
    known = list(paths)
    chosen: set[str] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        try:
            found = {path for path in known if re.search(pattern, path)}
        except re.error as error:
            raise ConfigError(f"targets: {pattern!r} is no regular expression: {error}") from error
        if not found:
            raise ConfigError(
                f"targets: {pattern!r} matches no layer. See `difflora show MODEL` for the layer paths."
            )
        chosen |= found
    return [path for path in known if path in chosen]


class Arena:
    """Float32 parameters and their gradients as views of two flat tensors.

    One kernel then does what would take one for each of hundreds of factors: the optimizer step, the norm of
    the gradient, zeroing it, and summing it over processes. `flat` (n,) is the parameter handed to the
    optimizer.
    """

    def __init__(self, tensors: list[Tensor], device: torch.device) -> None:
        total = sum(tensor.numel() for tensor in tensors)
        self.flat = nn.Parameter(torch.empty(total, device=device))
        self.flat.grad = torch.zeros_like(self.flat)
        self.views: list[nn.Parameter] = []
        start = 0
        for tensor in tensors:
            span = slice(start, start + tensor.numel())
            self.flat.data[span] = tensor.reshape(-1).to(device)
            view = nn.Parameter(self.flat.data[span].view(tensor.shape))
            # Autograd adds to a gradient that is already there in place, hence into the flat one.
            view.grad = self.flat.grad[span].view(tensor.shape)
            self.views.append(view)
            start = span.stop

    @property
    def grad(self) -> Tensor:
        """The flat gradient (n,)."""
        assert self.flat.grad is not None
        return self.flat.grad


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """The trainable pair of one layer."""

    path: str
    down: nn.Parameter
    up: nn.Parameter
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Injected:
    """Trainable factors while they are attached; `unet` and `text` are their storage, None where nothing is
    trained."""

    factors: tuple[Factor, ...]
    unet: Arena | None
    text: Arena | None

    def arenas(self) -> tuple[Arena, ...]:
        """The storages in use."""
        return tuple(arena for arena in (self.unet, self.text) if arena is not None)

    def collect(self, meta: AdapterMeta, *, dtype: torch.dtype = torch.float32) -> Adapter:
        """A copy of the factors as an Adapter, on the CPU, in `dtype`."""
        modules = {}
        for factor in self.factors:
            down, up = (part.detach().to("cpu", dtype, copy=True) for part in (factor.down, factor.up))
            modules[factor.path] = (LoRA(down, up, factor.scale),)
        return Adapter(modules, meta)

    @torch.no_grad()
    def restore(self, adapter: Adapter) -> None:
        """Writes the factors of a collected adapter back. Raises CheckpointError if the layers or shapes
        differ."""
        mine, theirs = {factor.path for factor in self.factors}, set(adapter.modules)
        if mine != theirs:
            raise CheckpointError(
                f"the checkpoint has factors for {len(theirs)} layers, this run for {len(mine)}. "
                "They differ in:\n" + listing(sorted(mine ^ theirs))
            )
        for factor in self.factors:
            (kind,) = adapter.modules[factor.path]
            assert isinstance(kind, LoRA)
            factor.down.copy_(kind.down)
            factor.up.copy_(kind.up)


@contextmanager
def injected(model: Model, options: NetworkOptions, *, seed: int) -> Iterator[Injected]:
    """Attaches trainable LoRA factors for the length of a `with` block.

    `down` is drawn from U(−1/√in, 1/√in) (kaiming uniform with a = √5, as peers do), a pure function of the
    seed and the path; `up` is zero, so that before the first step every output is bit-identical to the base.
    Factors are float32 whatever the base's dtype.

    Raises ConfigError if the options select no layer.
    """
    paths = targets(model, options)
    starts = {path: _start(model.shapes()[path], options.rank, seed, path) for path in paths}
    texts = [path for path in paths if path.startswith("text_encoder")]
    unets = [path for path in paths if not path.startswith("text_encoder")]
    arenas = {}
    pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
    for name, group in (("unet", unets), ("text", texts)):
        if group:
            arena = arenas[name] = Arena([tensor for path in group for tensor in starts[path]], model.device)
            pairs |= dict(zip(group, zip(arena.views[::2], arena.views[1::2], strict=True), strict=True))
    factors = tuple(Factor(path, *pairs[path], options.scale) for path in paths)
    attached = []
    try:
        for factor in factors:
            module = model.module(factor.path)
            attached.append(attach(module, _forward(module, factor)))
        yield Injected(factors, arenas.get("unet"), arenas.get("text"))
    finally:
        for attachment in reversed(attached):
            attachment.detach()


def _start(shape: tuple[int, ...], rank: int, seed: int, path: str) -> tuple[Tensor, Tensor]:
    """down (rank, in...) and up (out, rank...) of a fresh pair."""
    out, rest = shape[0], shape[1:]
    bound = 1 / math.sqrt(math.prod(rest))
    down = torch.empty(rank, *rest).uniform_(-bound, bound, generator=generator(seed, "down", path))
    return down, torch.zeros(out, rank, *([1] * (len(shape) - 2)))


def _forward(module: nn.Module, factor: Factor) -> Forward:
    """The layer with its trainable pair: fused for a plain frozen Linear, else beside whatever the layer
    does."""
    base: Forward = module.forward
    down, up, scale = factor.down, factor.up, factor.scale
    if isinstance(module, nn.Linear) and "forward" not in module.__dict__:
        linear = module
        return lambda x: _LoRALinear.apply(x, linear.weight, linear.bias, down, up, scale)
    if isinstance(module, nn.Linear):
        return lambda x: base(x) + scale * F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype))
    assert isinstance(module, nn.Conv2d)
    conv = module

    def convolve(x: Tensor) -> Tensor:
        t = F.conv2d(x, down.to(x.dtype), None, conv.stride, conv.padding, conv.dilation)
        return base(x) + scale * F.conv2d(t, up.to(x.dtype))

    return convolve


class _LoRALinear(torch.autograd.Function):
    """y = x Wᵀ + b + scale · (x downᵀ) upᵀ with W and b frozen.

    x (..., in), W (out, in), down (rank, in) and up (out, rank) float32; the products run in x's dtype. Saves
    x alone and computes x downᵀ again in the backward pass, which costs less than keeping it (Cherniuk et al.
    2023, "RunLoRA").
    """

    @staticmethod
    def forward(ctx, x, weight, bias, down, up, scale):  # type: ignore[override]
        rows = x.reshape(-1, x.shape[-1])
        y = F.linear(rows, weight, bias)
        y.addmm_(rows @ down.to(x.dtype).T, up.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x, weight, down, up)
        ctx.scale = scale
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, weight, down, up = ctx.saved_tensors
        small_down, small_up = down.to(x.dtype), up.to(x.dtype)
        rows, dy = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        dt = (dy @ small_up).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight).addmm_(dt, small_down).view(x.shape)
        d_down = (dt.T @ rows).to(down.dtype)
        d_up = (dy.T @ (rows @ small_down.T)).mul_(ctx.scale).to(up.dtype)
        return dx, None, None, d_down, d_up, None
