"""Training and drawing at the true size, on a GPU: SD 1.5 at 512² and SDXL at 1024² with random weights,
against diffusers and PEFT as they are and compiled."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import interleaved
from benchmarks.peers import peft_unet, random_adapter, random_unet
from benchmarks.report import Section, held
from benchmarks.training import our_step, peer_step, require_equal
from difflora.adapter import Stack
from difflora.apply import applied
from difflora.families.model import Model
from difflora.inject import NetworkOptions, injected

RANK, ADAPTERS = 16, 4
TOLERANCE = 0.05  # of the output: in bfloat16 the two round in other places
COLUMNS = ("what", "difflora", "diffusers + PEFT", "ratio", "compiled", "ratio", "goal")
ABOUT = (
    f"Random weights of the true architectures in bfloat16, adapters of rank {RANK} on the attention: in "
    "float32 where they are trained, the peer's under autocast, without gradient checkpointing; in bfloat16 "
    "where they draw. Medians of interleaved runs, ± half the distance of the quartiles, after the peer was "
    "compiled; beside them the peak memory of one call over what the models hold. Ratios are times, the "
    "peer's / ours."
)


@dataclass(frozen=True, slots=True)
class Work:
    """A model and what goes into it: `inputs` (latents (B, 4, h, w), timesteps (B,), text states), `added`
    what SDXL wants beside; how often each call is timed, and whether the peer is compiled as well."""

    what: str
    model: Model
    inputs: tuple[Tensor, Tensor, Tensor]
    added: Mapping[str, Tensor] | None = None
    rounds: int = 20
    compiled: bool = True


def true_size_sections() -> list[Section]:
    """One table; none without a GPU."""
    if not torch.cuda.is_available():
        return []
    rows = []
    for make in (_sd15, _sdxl):
        work = make(torch.device("cuda"))
        rows += work_rows(work)
        del work
        gc.collect()
        torch.cuda.empty_cache()
    return [Section("At the true size", ABOUT, COLUMNS, tuple(rows))]


def work_rows(work: Work) -> list[tuple[str, ...]]:
    """A training step, and a forward pass under several adapters."""
    batch = f"batch {len(work.inputs[0])}"
    with _training(work) as steps:
        trained = _row(f"training step, {work.what}, {batch}", steps, work.rounds, goal="≥ 1.15")
    with torch.no_grad(), _drawing(work) as forwards:
        drawn = _row(f"forward with {ADAPTERS} live adapters, {work.what}, {batch}", forwards, work.rounds)
    return [trained, drawn]


def _sd15(device: torch.device) -> Work:
    model = random_unet("sd15", device=device, dtype=torch.bfloat16)
    return Work("SD 1.5 at 512²", model, _inputs(model, rows=4, edge=64, width=768))


def _sdxl(device: torch.device) -> Work:
    model = random_unet("sdxl", device=device, dtype=torch.bfloat16)
    kind = {"device": device, "dtype": torch.bfloat16}
    added = {"text_embeds": torch.randn(2, 1280, **kind), "time_ids": torch.full((2, 6), 1024.0, **kind)}
    inputs = _inputs(model, rows=2, edge=128, width=2048)
    return Work("SDXL at 1024²", model, inputs, added, rounds=10)


def _inputs(model: Model, *, rows: int, edge: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    kind = {"device": model.device, "dtype": model.dtype}
    times = torch.linspace(10, 990, rows, device=model.device).long()
    return torch.randn(rows, 4, edge, edge, **kind), times, torch.randn(rows, 77, width, **kind)


@contextmanager
def _training(work: Work) -> Iterator[Mapping[str, Callable[[], object]]]:
    """A step of ours, of the peer's, and of the peer's compiled."""
    model, device = work.model, work.model.device
    adapter = random_adapter(model, 1, rank=RANK)
    target = torch.randn(work.inputs[0].shape, device=device)
    peer = peft_unet(model, [adapter], rank=RANK)
    for parameter in peer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()

    def theirs(unet: Callable[..., Any]) -> Callable[[], Tensor]:
        def predict() -> Tensor:
            with torch.autocast(device.type, model.dtype, enabled=model.dtype != torch.float32):
                return _called(unet, work).float()

        return predict

    with injected(model, NetworkOptions(rank=RANK), seed=0) as factors:
        factors.restore(adapter)

        def mine() -> Tensor:
            return _called(model.pipeline.unet, work).float()

        with torch.no_grad():
            require_equal(mine(), theirs(peer)(), tolerance=TOLERANCE)
        calls = {
            "ours": our_step(mine, factors, target),
            "peer": peer_step(theirs(peer), peer, target),
        }
        if work.compiled:
            calls["compiled"] = peer_step(theirs(_compiled(peer)), peer, target)
        yield calls


@contextmanager
def _drawing(work: Work) -> Iterator[Mapping[str, Callable[[], object]]]:
    """A forward pass of ours, of the peer's, and of the peer's compiled, under the same adapters."""
    model = work.model
    adapters = [random_adapter(model, seed, rank=RANK) for seed in range(ADAPTERS)]
    peer = peft_unet(model, adapters, rank=RANK).to(model.dtype)
    with applied(model, Stack([(adapter, 1.0) for adapter in adapters]), mode="live"):
        calls = {
            "ours": lambda: _called(model.pipeline.unet, work),
            "peer": lambda: _called(peer, work),
        }
        require_equal(*(call().float() for call in calls.values()), tolerance=TOLERANCE)
        if work.compiled:
            compiled = _compiled(peer)
            calls["compiled"] = lambda: _called(compiled, work)
        yield calls


def _called(unet: Callable[..., Any], work: Work) -> Tensor:
    return unet(*work.inputs, added_cond_kwargs=work.added, return_dict=False)[0]


def _compiled(unet: nn.Module) -> Callable[..., Any]:
    compiled: Any = torch.compile(unet)
    return compiled


def _row(
    what: str, calls: Mapping[str, Callable[[], object]], rounds: int, *, goal: str = ""
) -> tuple[str, ...]:
    times = interleaved(calls, rounds=rounds)
    shown = {name: f"{times[name]}{_memory(call)}" for name, call in calls.items()}
    ratios = {name: times[name].median / times["ours"].median for name in calls}
    compiled = (shown["compiled"], f"{ratios['compiled']:.2f}") if "compiled" in calls else ("–", "–")
    return what, shown["ours"], shown["peer"], f"{ratios['peer']:.2f}", *compiled, held(ratios["peer"], goal)


def _memory(call: Callable[[], object]) -> str:
    """The peak of one call over what was allocated before it; nothing where that is not counted."""
    if not torch.cuda.is_available():
        return ""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return f", {(torch.cuda.max_memory_allocated() - before) / 2**30:.2f} GiB"
