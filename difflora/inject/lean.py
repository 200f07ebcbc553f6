"""Frozen layers that keep less for the backward pass, with the same outputs and gradients.

PyTorch keeps the input of every convolution, although only a weight's gradient needs it; and of a norm or a
gate followed by an activation it keeps both, although the second follows from the first. On a diffusion UNet
that is a third of what a training step holds. What is computed again here costs no matrix product.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from difflora.apply import Attached, Forward, attach

_aten: Any = torch.ops.aten


def attach_lean(root: nn.Module, *, trained: frozenset[nn.Module]) -> Iterator[Attached]:
    """Puts lean forwards in front of all frozen layers below `root` but the `trained` ones, yielding each.

    A layer with another forward in front already keeps that one.
    """
    for module in root.modules():
        if "forward" not in module.__dict__ and module not in trained:
            forward = _lean(module)
            if forward is not None:
                yield attach(module, forward)


def _lean(module: nn.Module) -> Forward | None:
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return lambda x: _Convolution.apply(x, module.weight, module.bias, module)  # pyright: ignore
    if type(module) is GEGLU:
        return lambda x: _Gate.apply(module.proj(x))
    if type(module) is ResnetBlock2D and _is_plain_block(module):
        return _resnet(module)
    if type(module) is Attention and _is_plain_attention(module):
        return _attention(module)
    return None


def _is_plain_block(block: ResnetBlock2D) -> bool:
    """Whether it is the block of the Stable Diffusion UNets; others are left as they are."""
    return (
        type(block.nonlinearity) is nn.SiLU
        and block.time_embedding_norm == "default"
        and block.upsample is None
        and block.downsample is None
        and block.dropout.p == 0
    )


def _is_plain_attention(attention: Attention) -> bool:
    """Whether it is attention as in the Stable Diffusion UNets, computed by PyTorch's own operator."""
    norms = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross")
    return (
        type(attention.processor) is AttnProcessor2_0
        and all(getattr(attention, norm) is None for norm in norms)
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
        and attention.to_out is not None
        and all(part.p == 0 for part in attention.to_out if isinstance(part, nn.Dropout))
    )


def _attention(attention: Attention) -> Forward:
    """AttnProcessor2_0 less its divisions by one: on a small UNet they are a hundredth of a step."""
    whole, to_q, to_k, to_v = attention.forward, attention.to_q, attention.to_k, attention.to_v
    to_out = attention.get_submodule("to_out.0")
    assert to_k is not None and to_v is not None, "attention over given keys has both"

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)

    def forward(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None:
            return whole(hidden_states, encoder_hidden_states, attention_mask)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = to_q(hidden_states), to_k(context), to_v(context)
        mixed = F.scaled_dot_product_attention(heads(query), heads(key), heads(value))
        return to_out(mixed.transpose(1, 2).flatten(2))

    return forward


def _resnet(block: ResnetBlock2D) -> Forward:
    """ResnetBlock2D's forward with norm and activation in one."""

    def forward(x: Tensor, temb: Tensor | None = None) -> Tensor:
        hidden = block.conv1(_norm_silu(x, block.norm1))
        if block.time_emb_proj is not None and temb is not None:
            time = temb if block.skip_time_act else block.nonlinearity(temb)
            hidden = hidden + block.time_emb_proj(time)[:, :, None, None]
        hidden = block.conv2(_norm_silu(hidden, block.norm2))
        shortcut = x if block.conv_shortcut is None else block.conv_shortcut(x)
        total = shortcut + hidden
        return total if block.output_scale_factor == 1 else total / block.output_scale_factor

    return forward


def _norm_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    return _NormSiLU.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)  # pyright: ignore


class _Convolution(torch.autograd.Function):
    """A frozen convolution that keeps its weight alone (an open wish: pytorch/pytorch#133566)."""

    @staticmethod
    def forward(ctx, x, weight, bias, conv):  # type: ignore[override]
        ctx.save_for_backward(weight)
        ctx.conv, ctx.shape = conv, x.shape
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        (weight,), conv = ctx.saved_tensors, ctx.conv
        # The operator takes the input in any case, and reads its shape.
        stand_in = grad.new_empty(ctx.shape)
        geometry = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups)
        dx, _, _ = _aten.convolution_backward(grad, stand_in, weight, None, *geometry, (True, False, False))
        return dx, None, None, None


class _NormSiLU(torch.autograd.Function):
    """silu(group_norm(x)) with frozen weights: keeps x, and normalises it again in the backward pass."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):  # type: ignore[override]
        ctx.save_for_backward(x, weight, bias)
        ctx.groups, ctx.eps = groups, eps
        return F.silu(F.group_norm(x, groups, weight, bias, eps))

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, weight, bias = ctx.saved_tensors
        x = x.contiguous()
        sizes = (x.shape[0], x.shape[1], x[0, 0].numel(), ctx.groups)
        y, mean, rstd = torch.native_group_norm(x, weight, bias, *sizes, ctx.eps)
        dy = _aten.silu_backward(grad, y).contiguous()
        dx, _, _ = _aten.native_group_norm_backward(dy, x, mean, rstd, weight, *sizes, (True, False, False))
        return dx, None, None, None, None


class _Gate(torch.autograd.Function):
    """first · gelu(second) of the two halves of h (..., 2n): keeps h alone."""

    @staticmethod
    def forward(ctx, h):  # type: ignore[override]
        ctx.save_for_backward(h)
        first, second = h.chunk(2, dim=-1)
        return first * F.gelu(second)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        (h,) = ctx.saved_tensors
        first, second = h.chunk(2, dim=-1)
        dh = torch.empty_like(h)
        d_first, d_second = dh.chunk(2, dim=-1)
        torch.mul(grad, F.gelu(second), out=d_first)
        _aten.gelu_backward.grad_input(grad * first, second, grad_input=d_second)
        return dh
