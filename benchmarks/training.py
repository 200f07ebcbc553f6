"""A training step against the same step with diffusers and PEFT: base, rank, targets, batch and latents
alike."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Row, interleaved, saved_bytes
from benchmarks.peers import base, peft_unet, random_adapter, random_unet, unet_inputs
from benchmarks.report import held
from difflora.families.model import Model
from difflora.inject import Injected, NetworkOptions, injected
from difflora.training.optimizers import OptimizerOptions, clip, make_optimizer

RANK = 16


def training_rows() -> list[Row]:
    """Images a second and saved activation bytes of one step on the embedded base, and on a UNet of SD 1.5's
    true architecture with small latents."""
    torch.manual_seed(0)
    true_inputs = (torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 77, 768))
    return [
        *_rows("embedded base", base(), unet_inputs(8), rounds=60, goal="≥ 1.05"),
        *_rows("SD 1.5, 16 × 16 latents", random_unet("sd15"), true_inputs, rounds=25, goal="≥ 0.97"),
    ]


def _rows(what: str, model: Model, inputs: tuple[Tensor, ...], *, rounds: int, goal: str) -> list[Row]:
    adapter, target = random_adapter(model, 1, rank=RANK), torch.randn(inputs[0].shape)
    peer = peft_unet(model, [adapter], rank=RANK)
    with injected(model, NetworkOptions(rank=RANK), seed=0) as factors:
        factors.restore(adapter)
        with torch.no_grad():
            require_equal(model.pipeline.unet(*inputs).sample, peer(*inputs).sample)
        mine = saved_bytes(lambda: model.pipeline.unet(*inputs).sample.sum())
        theirs = saved_bytes(lambda: peer(*inputs).sample.sum())
        calls = {
            "ours": our_step(lambda: model.pipeline.unet(*inputs).sample, factors, target),
            "peer": peer_step(lambda: peer(*inputs).sample, peer, target),
        }
        times = interleaved(calls, rounds=rounds)
    ours, other = times["ours"], times["peer"]
    step = f"training step, {what}, batch {len(target)}, rank {RANK}, {torch.get_num_threads()} threads"
    faster, kept = other.median / ours.median, mine / theirs
    return [
        Row(step, str(ours), str(other), faster, "images/s, ours / PEFT's", held(faster, goal)),
        Row(
            "activations saved for it",
            _mib(mine),
            _mib(theirs),
            kept,
            "bytes, ours / PEFT's",
            held(kept, "≤ 0.9"),
        ),
    ]


def our_step(predict: Callable[[], Tensor], factors: Injected, target: Tensor) -> Callable[[], None]:
    """One step of our loop on the factors that act in `predict`."""
    optimizer, _ = make_optimizer(OptimizerOptions(learning_rate=1e-6), unet=factors.unet, text=None)
    arenas = factors.arenas()

    def step() -> None:
        for arena in arenas:
            arena.grad.zero_()
        F.mse_loss(predict(), target).backward()
        clip(arenas, 1.0)
        optimizer.step()

    return step


def peer_step(predict: Callable[[], Tensor], unet: nn.Module, target: Tensor) -> Callable[[], None]:
    """The same step as diffusers' training scripts make it, on what of `unet` is trained."""
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        F.mse_loss(predict(), target).backward()
        float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        optimizer.step()

    return step


def require_equal(ours: Tensor, theirs: Tensor, *, tolerance: float = 1e-4) -> None:
    """A row is void unless both compute the same thing."""
    error = float((ours - theirs).norm() / theirs.norm())
    if error > tolerance:
        raise AssertionError(f"the peer computes something else: relative difference {error:.1e}")


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
