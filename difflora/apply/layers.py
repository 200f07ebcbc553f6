"""The layer types that a change can act beside: each is linear in its weight and bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difflora.apply.attach import Forward

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x, weight, bias) -> the output that the layer would have with that weight and bias."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One module as a live stack sees it.

    `product` is linear in weight and bias together. `channels_last` says where the output's channels are: in
    its last dimension, else in dimension 1. `base` is what the module computed before; it is `foreign` if
    something was attached to the module already, and `plain` if it is torch's own forward of the type.
    `device` is where it computes: under CPU offload the weights rest elsewhere.
    """

    path: str
    module: nn.Module
    product: Product
    channels_last: bool
    base: Forward
    foreign: bool
    plain: bool
    device: torch.device

    @property
    def weight(self) -> Tensor:
        """The module's weight, without a gradient."""
        weight = self.module.weight
        assert isinstance(weight, Tensor), "fits() lets modules with a weight through only"
        return weight.detach()

    @property
    def bias(self) -> Tensor | None:
        """The module's bias (out,), without a gradient; None where it has none."""
        return bias_of(self.module)

    @property
    def takes_pairs(self) -> bool:
        """Whether a low-rank change can be computed as two products, and a gain on the output."""
        module = self.module
        return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)

    def pristine(self, x: Tensor) -> Tensor:
        """The output of the module's own weights, whatever is attached to it."""
        return type(self.module).forward(self.module, x)


def bias_of(module: nn.Module) -> Tensor | None:
    """A module's bias (out,), without a gradient; None where it has none (embeddings never have)."""
    bias = module._parameters.get("bias")
    return None if bias is None else bias.detach()


def layer_of(path: str, module: nn.Module, *, device: torch.device) -> Layer | None:
    """The layer at `path`; None if a change cannot act beside a module of this type."""
    for kind, (product_of, channels_last) in _TYPES.items():
        if isinstance(module, kind):
            foreign = "forward" in module.__dict__
            plain = not foreign and type(module).forward is kind.forward
            product = product_of(module)
            return Layer(path, module, product, channels_last, module.forward, foreign, plain, device)
    return None


def _linear(module: nn.Module) -> Product:
    return F.linear


def _conv(module: nn.Module) -> Product:
    assert isinstance(module, nn.Conv2d)
    return module._conv_forward  # pads as the module does: images that tile need it circular


def _embedding(module: nn.Module) -> Product:
    return lambda x, weight, bias: F.embedding(x, weight)


def _layer_norm(module: nn.Module) -> Product:
    assert isinstance(module, nn.LayerNorm)
    shape, eps = module.normalized_shape, module.eps
    return lambda x, weight, bias: F.layer_norm(x, shape, weight, bias, eps)


def _group_norm(module: nn.Module) -> Product:
    assert isinstance(module, nn.GroupNorm)
    groups, eps = module.num_groups, module.eps
    return lambda x, weight, bias: F.group_norm(x, groups, weight, bias, eps)


_TYPES: dict[type[nn.Module], tuple[Callable[[nn.Module], Product], bool]] = {
    nn.Linear: (_linear, True),
    nn.Conv2d: (_conv, False),
    nn.Embedding: (_embedding, True),
    nn.LayerNorm: (_layer_norm, True),
    nn.GroupNorm: (_group_norm, False),
}
