"""N adapters at once and a change of their weights, against PEFT's `set_adapters`."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch

from benchmarks.kernels import kernel_rows
from benchmarks.measure import KernelCount, Row, Timing, interleaved
from benchmarks.peers import base, peft_unet, random_adapter, unet_inputs
from benchmarks.report import compared, held
from difflora.adapter import Stack
from difflora.apply import Live, applied
from difflora.families.model import Model

RANK, ROWS, ROUNDS = 16, 8, 30
COUNTS = (1, 2, 4, 8)
MERGED = 4
WITH_GOAL = 4  # the number of adapters whose cost over the base has one
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the bare base, of ours and of the peer's: seconds and kernels of a forward pass, seconds of a
    weight change."""

    forward: dict[str, Timing]
    change: dict[str, Timing]
    kernels: dict[str, int]


@torch.no_grad()
def stacking_rows() -> list[Row]:
    """Overhead of a forward pass over the bare base, and the time of a weight change, for each number of
    adapters; what a merged stack costs; and the kernels of a large model."""
    model = base()
    live = {count: _figures(model, count) for count in COUNTS}
    rows = [row for count, figures in live.items() for row in _rows(figures, count)]
    return [*rows, *_growth(live[COUNTS[0]], live[COUNTS[-1]]), _merged(model), *kernel_rows()]


def _figures(model: Model, count: int) -> Figures:
    adapters = [random_adapter(model, seed, rank=RANK) for seed in range(count)]
    names = [adapter.meta.name for adapter in adapters]
    dialled = [[1.0] * (count - 1) + [weight] for weight in (0.9, 1.1, 1.0)]
    mine, theirs = cycle(dialled), cycle(dialled)  # one each: every call brings another weight
    stack = Stack([(adapter, 1.0) for adapter in adapters])
    inputs = unet_inputs(ROWS)
    plain, peer = peft_unet(model, [], rank=RANK), peft_unet(model, adapters, rank=RANK)
    with applied(model, stack, mode="live") as mix:
        assert isinstance(mix, Live)
        calls = {
            "bare": lambda: plain(*inputs),
            "live": lambda: model.pipeline.unet(*inputs),
            "peer": lambda: peer(*inputs),
        }
        _same(*(call().sample for call in calls.values()))
        changes = {
            "live": lambda: mix.set_weights(next(mine)),
            "peer": lambda: peer.set_adapters(names, next(theirs)),
        }
        return Figures(
            interleaved(calls, rounds=ROUNDS),
            interleaved(changes, rounds=ROUNDS),
            {name: _kernels(call) for name, call in calls.items()},
        )


def _same(bare: torch.Tensor, live: torch.Tensor, peer: torch.Tensor) -> None:
    error = float((live - peer).norm() / (peer - bare).norm())
    if error > TOLERANCE:
        raise AssertionError(f"the peer computes something else: it differs by {error:.1e} of the effect")


def _rows(figures: Figures, count: int) -> list[Row]:
    label = f"{count} adapter{'s' if count > 1 else ''}"
    bare, change = figures.forward["bare"].median, figures.change
    extra = {name: timing.median - bare for name, timing in figures.forward.items()}
    more = {name: number - figures.kernels["bare"] for name, number in figures.kernels.items()}
    shown = {name: f"{timing} ({extra[name] * 1e3:+.1f})" for name, timing in figures.forward.items()}
    return [
        Row(
            f"forward with {label} (over base)",
            shown["live"],
            shown["peer"],
            extra["live"] / extra["peer"],
            "time over base, ours / PEFT's",
            held(extra["live"] / extra["peer"], "≤ 0.3") if count == WITH_GOAL else "",
        ),
        compared(f"kernels for {label}", more["live"], more["peer"], "over base, ours / PEFT's"),
        Row(
            f"another weight for one, {label}",
            str(change["live"]),
            str(change["peer"]),
            change["live"].median / change["peer"].median,
            "time, ours / PEFT's",
            held(change["live"].median * 1e3, "≤ 5 ms"),
        ),
    ]


def _growth(fewest: Figures, most: Figures) -> list[Row]:
    """What the number of adapters changes about the costs."""
    many = f"{COUNTS[-1]} adapters over {COUNTS[0]}"
    more = [most.kernels[name] - fewest.kernels[name] for name in ("live", "peer")]
    times = [most.change[name].median / fewest.change[name].median for name in ("live", "peer")]
    return [
        compared(
            f"kernels, {many}",
            *more,
            "further kernels, ours / PEFT's",
            goal="≤ 0 (flat)",
        ),
        compared(
            f"another weight for one, {many}",
            *times,
            "times as long, ours / PEFT's",
            shown="{:.1f} times",
            goal="≤ 1.25 (independent)",
        ),
    ]


def _merged(model: Model) -> Row:
    adapters = [random_adapter(model, seed, rank=RANK) for seed in range(MERGED)]
    # Weights of its own: a merged stack is written into those of the model.
    plain, inputs = copy.deepcopy(model.pipeline.unet), unet_inputs(ROWS)
    before = plain(*inputs).sample
    with applied(model, Stack([(adapter, 1.0) for adapter in adapters]), mode="merged"):
        assert torch.equal(plain(*inputs).sample, before), "the bare base has changed with the merged one"
        calls = {"bare": lambda: plain(*inputs), "merged": lambda: model.pipeline.unet(*inputs)}
        times = interleaved(calls, rounds=ROUNDS)
    ratio = times["merged"].median / times["bare"].median
    what = f"forward with {MERGED} adapters merged, against none"
    meaning, goal = "time, merged / base alone", held(ratio, "≤ 1.05")
    return Row(what, str(times["merged"]), str(times["bare"]), ratio, meaning, goal)


def _kernels(call: Callable[[], object]) -> int:
    with KernelCount() as counted:
        call()
    return counted.kernels
