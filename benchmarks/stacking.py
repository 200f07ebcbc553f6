"""N adapters at once and a change of their weights, against PEFT's `set_adapters`."""

import torch

from benchmarks.kernels import kernel_rows
from benchmarks.measure import KernelCount, Row, interleaved
from benchmarks.peers import base, peft_unet, random_adapter, unet_inputs
from difflora.adapter import Stack
from difflora.apply import Live, applied
from difflora.families.model import Model

RANK, ROWS, ROUNDS = 16, 8, 30
COUNTS = (1, 2, 4, 8)


@torch.no_grad()
def stacking_rows() -> list[Row]:
    """Overhead of a forward pass over the bare base, and the time of a weight change, for each number of
    adapters."""
    model = base()
    return [*(row for count in COUNTS for row in _rows(model, count)), *kernel_rows()]


def _rows(model: Model, count: int) -> list[Row]:
    adapters = [random_adapter(model, seed, rank=RANK) for seed in range(count)]
    names, weights = [adapter.meta.name for adapter in adapters], [1.0] * count
    stack, peer, inputs = (
        Stack([(adapter, 1.0) for adapter in adapters]),
        peft_unet(model, adapters, rank=RANK),
        unet_inputs(ROWS),
    )
    bare = model.pipeline.unet(*inputs).sample
    kernels = {"bare": _kernels(model, inputs), "peer": _count(lambda: peer(*inputs))}
    plain = peft_unet(model, [], rank=RANK)
    with applied(model, stack, mode="live") as mix:
        assert isinstance(mix, Live)
        live, wanted = model.pipeline.unet(*inputs).sample, peer(*inputs).sample
        error = float((live - wanted).norm() / (wanted - bare).norm())
        if error > 1e-3:
            raise AssertionError(
                f"the peer computes something else: relative difference {error:.1e} of the effect"
            )
        kernels["live"] = _kernels(model, inputs)
        forward = interleaved(
            {
                "bare": lambda: plain(*inputs),
                "live": lambda: model.pipeline.unet(*inputs),
                "peer": lambda: peer(*inputs),
            },
            rounds=ROUNDS,
        )
        change = interleaved(
            {
                "live": lambda: mix.set_weights(weights),
                "peer": lambda: peer.set_adapters(names, weights),
            },
            rounds=ROUNDS,
        )
    ours, theirs = (forward[name].median - forward["bare"].median for name in ("live", "peer"))
    more = {name: kernels[name] - kernels["bare"] for name in ("live", "peer")}
    label = f"{count} adapter{'s' if count > 1 else ''}"
    return [
        Row(
            f"forward with {label}",
            str(forward["live"]),
            str(forward["peer"]),
            ours / theirs,
            "time over base, ours / PEFT's",
        ),
        Row(
            f"kernels for {label}",
            f"+{more['live']}",
            f"+{more['peer']}",
            more["live"] / more["peer"],
            "over base, ours / PEFT's",
        ),
        Row(
            f"weight change, {label}",
            str(change["live"]),
            str(change["peer"]),
            change["live"].median / change["peer"].median,
            "time, ours / PEFT's",
        ),
    ]


def _kernels(model: Model, inputs: tuple[torch.Tensor, ...]) -> int:
    return _count(lambda: model.pipeline.unet(*inputs))


def _count(call) -> int:
    with KernelCount() as counted:
        call()
    return counted.kernels
