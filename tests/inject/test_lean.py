"""Frozen layers that keep less: the same outputs bit for bit, the same gradients, fewer bytes."""

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from benchmarks.measure import saved_bytes
from difflora.inject import NetworkOptions, injected
from difflora.inject.lean import attach_lean


def layers() -> dict[str, tuple[nn.Module, tuple[tuple[int, ...], ...]]]:
    """Frozen layers, and the shapes of their inputs."""
    torch.manual_seed(0)
    return {
        "conv": (nn.Conv2d(4, 6, 3, padding=1), ((2, 4, 5, 7),)),
        "strided conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), ((2, 4, 6, 8),)),
        "grouped conv": (nn.Conv2d(4, 6, 3, groups=2, dilation=2), ((2, 4, 7, 7),)),
        "1x1 conv": (nn.Conv2d(4, 6, 1), ((2, 4, 5, 5),)),
        "gate": (GEGLU(6, 10), ((2, 3, 6),)),
        "resnet": (
            ResnetBlock2D(in_channels=8, out_channels=8, temb_channels=5, groups=4),
            ((2, 8, 4, 4), (2, 5)),
        ),
        "resnet with shortcut": (
            ResnetBlock2D(in_channels=8, out_channels=12, temb_channels=5, groups=4, output_scale_factor=2.0),
            ((2, 8, 4, 4), (2, 5)),
        ),
        "self-attention": (Attention(8, heads=2, dim_head=4), ((2, 6, 8),)),
        "cross-attention": (Attention(8, cross_attention_dim=5, heads=2, dim_head=4), ((2, 6, 8), (2, 3, 5))),
    }


def run(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The output, and the gradient of its sum of squares with respect to every input."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = module(*leaves)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", layers())
def test_outputs_are_bit_identical_and_gradients_alike(name: str, dtype: torch.dtype) -> None:
    module, shapes = layers()[name]
    module.eval().requires_grad_(False).to(dtype)
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    expected = run(module, inputs)
    attached = list(attach_lean(module, trained=frozenset()))
    assert attached
    found = run(module, inputs)
    for attachment in reversed(attached):
        attachment.detach()
    assert torch.equal(found[0], expected[0])
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-6)
    assert "forward" not in module.__dict__


def test_gradients_are_those_of_finite_differences() -> None:
    for name, (module, shapes) in layers().items():
        module.eval().requires_grad_(False).double()
        list(attach_lean(module, trained=frozenset()))
        inputs = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
        assert torch.autograd.gradcheck(module, inputs), name


def test_a_mask_reaches_the_attention() -> None:
    module, _ = layers()["self-attention"]
    x, mask = torch.randn(2, 6, 8), torch.zeros(2, 1, 6)
    mask[..., 3:] = -1e4
    expected = module(x, attention_mask=mask)
    list(attach_lean(module, trained=frozenset()))
    assert torch.equal(module(x, attention_mask=mask), expected)
    assert not torch.equal(module(x), expected)


@pytest.mark.parametrize(
    "block",
    [
        ResnetBlock2D(in_channels=8, temb_channels=5, groups=4, up=True),
        ResnetBlock2D(in_channels=8, temb_channels=5, groups=4, time_embedding_norm="scale_shift"),
        ResnetBlock2D(in_channels=8, temb_channels=5, groups=4, dropout=0.5),
        Attention(8, heads=2, dim_head=4, residual_connection=True),
        Attention(8, heads=2, dim_head=4, norm_num_groups=4),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
    ],
)
def test_other_blocks_are_left_as_they_are(block: nn.Module) -> None:
    list(attach_lean(block, trained=frozenset()))
    assert "forward" not in block.__dict__


def step(unet: UNet2DConditionModel) -> Callable[[], Tensor]:
    latents, hidden = torch.randn(2, 4, 16, 16), torch.randn(2, 32, 128)
    return lambda: unet(latents, torch.tensor([3, 700]), hidden).sample.sum()


def test_a_training_step_keeps_two_thirds_of_what_it_would(shapes_model, monkeypatch) -> None:
    unet = shapes_model.pipeline.unet
    with injected(shapes_model, NetworkOptions(), seed=0):
        lean = saved_bytes(step(unet))
    monkeypatch.setattr("difflora.inject.lean.attach_lean", lambda *_, **__: iter(()))
    with injected(shapes_model, NetworkOptions(), seed=0):
        assert lean < 0.7 * saved_bytes(step(unet))


@pytest.mark.parametrize("targets", ["attn", "all"])
def test_gradient_checkpointing_gives_the_same_gradients(shapes_model, targets: str) -> None:
    unet = shapes_model.pipeline.unet
    torch.manual_seed(0)
    forward, gradients = step(unet), []
    for checkpointing in (False, True):
        with injected(shapes_model, NetworkOptions(rank=2, targets=targets), seed=0) as factors:
            (arena,) = factors.arenas()
            arena.flat.data.add_(0.01)
            try:
                if checkpointing:
                    unet.enable_gradient_checkpointing()
                    unet.train()
                forward().backward()
            finally:
                unet.disable_gradient_checkpointing()
                unet.eval()
            gradients.append(arena.grad.clone())
    assert torch.equal(*gradients)
