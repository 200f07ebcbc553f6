"""Arithmetic on adapters: how near merges come to Σ weight · ΔW, and what they cost at the size of SDXL."""

import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from benchmarks.peers import ATTENTION, base, random_adapter
from benchmarks.report import Section
from difflora import Stack, merge, resize
from difflora.adapter import Adapter, AdapterMeta
from difflora.families.family import ASSETS
from difflora.families.model import Model
from difflora.families.skeleton import skeleton
from difflora.kinds import LoRA

RANK = 16
PROCESSES = 5
WEIGHTS = ((1.0, 1.0), (0.7, 0.4), (0.7, -0.4))
Job = Literal["resize", "merge"]


def algebra_sections(*, quick: bool) -> list[Section]:
    """The tables of exactness and of cost; `quick` measures the cost on a tenth of the modules."""
    return [_exactness(base()), _cost(quick=quick)]


def _exactness(model: Model) -> Section:
    adapters = [random_adapter(model, seed, rank=RANK) for seed in (1, 2)]
    peer = _Peft(model, adapters)
    ways: Mapping[str, Callable[[Sequence[float]], Mapping[str, Tensor]]] = {
        "difflora merge": lambda weights: _deltas(merge(_stack(adapters, weights))[0]),
        f"difflora merge to rank {RANK}": lambda weights: _deltas(
            merge(_stack(adapters, weights), rank=RANK)[0]
        ),
        "kohya merge_lora (its rule)": lambda weights: _kohya(adapters, weights),
        "kohya merge_lora --concat (its rule)": lambda weights: _kohya_concat(adapters, weights),
        "PEFT cat": lambda weights: peer.merged(weights, "cat"),
        f"PEFT svd, rank {RANK}": lambda weights: peer.merged(weights, "svd"),
        "PEFT linear": lambda weights: peer.merged(weights, "linear"),
    }
    rows = []
    for name, way in ways.items():
        errors = [_error(way(weights), adapters, weights) for weights in WEIGHTS]
        rows.append((name, *(f"{error:.1e}" for error in errors)))
    return Section(
        "Exactness of merging",
        f"Two random adapters of rank {RANK} on the attention of the embedded base: ‖merged − Σ weight · ΔW‖ "
        "/ ‖Σ weight · ΔW‖ over all modules, the sum taken in float64. A rank limits what can be kept.",
        ("merged by", *(f"weights {a:g} and {b:g}" for a, b in WEIGHTS)),
        tuple(rows),
    )


def _stack(adapters: Sequence[Adapter], weights: Sequence[float]) -> Stack:
    return Stack(list(zip(adapters, weights, strict=True)))


def _deltas(adapter: Adapter) -> dict[str, Tensor]:
    return {path: adapter.delta(path) for path in adapter.modules}


def _error(got: Mapping[str, Tensor], adapters: Sequence[Adapter], weights: Sequence[float]) -> float:
    lost = wanted = 0.0
    for path, delta in got.items():
        true = torch.zeros(delta.shape, dtype=torch.float64)
        for adapter, weight in zip(adapters, weights, strict=True):
            (kind,) = adapter.modules[path]
            assert isinstance(kind, LoRA)
            true += weight * kind.scale * (kind.up.double() @ kind.down.double())
        lost += float((delta - true).square().sum())
        wanted += float(true.square().sum())
    return (lost / wanted) ** 0.5


def _kohya(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    """What kohya's merge_lora.py and sdxl_merge_lora.py compute of adapters of one rank and alpha: the sums
    of |weight| · up and of weight · down, each by itself."""
    found = {}
    for path in adapters[0].modules:
        up, down = 0.0, 0.0
        for adapter, weight in zip(adapters, weights, strict=True):
            (kind,) = adapter.modules[path]
            assert isinstance(kind, LoRA)
            up, down = up + abs(weight) * kind.up, down + weight * kind.down
        assert isinstance(up, Tensor) and isinstance(down, Tensor)
        found[path] = up @ down
    return found


def _kohya_concat(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    """The same with --concat: both factors are multiplied, and alpha stays that of one adapter while the rank
    is that of all."""
    return {
        path: sum(
            (
                weight * abs(weight) * adapter.delta(path)
                for adapter, weight in zip(adapters, weights, strict=True)
            ),
            torch.zeros(()),
        )
        / len(adapters)
        for path in adapters[0].modules
    }


class _Peft:
    """The adapters in a PeftModel around a copy of the UNet."""

    def __init__(self, model: Model, adapters: Sequence[Adapter]) -> None:
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=ATTENTION, init_lora_weights=False)
        self.names = [adapter.meta.name for adapter in adapters]
        self.paths = tuple(adapters[0].modules)
        unet: nn.Module = copy.deepcopy(model.pipeline.unet)
        self.peer = get_peft_model(unet, config, adapter_name=self.names[0])
        assert isinstance(self.peer, PeftModel)
        for name in self.names[1:]:
            self.peer.add_adapter(name, config)
        parameters = dict(self.peer.base_model.model.named_parameters())
        with torch.no_grad():
            for adapter in adapters:
                for path, (kind,) in adapter.modules.items():
                    for leaf, ours in (("lora_A", "down"), ("lora_B", "up")):
                        name = f"{path.removeprefix('unet.')}.{leaf}.{adapter.meta.name}.weight"
                        parameters[name].copy_(kind.tensors()[ours])

    def merged(self, weights: Sequence[float], how: str) -> dict[str, Tensor]:
        """ΔW of every module as `add_weighted_adapter` makes it."""
        name = f"{how}{'_'.join(map(str, weights))}".replace(".", "")
        self.peer.base_model.add_weighted_adapter(self.names, list(weights), name, combination_type=how)
        found = {}
        for path in self.paths:
            layer = self.peer.base_model.model.get_submodule(path.removeprefix("unet."))
            found[path] = layer.get_delta_weight(name).detach()
        return found


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a job, and its peak memory over the bytes of its inputs."""

    seconds: float
    memory: float
    modules: int


_GOALS: Mapping[Job, tuple[str, str]] = {
    "resize": ("an SDXL adapter of rank 64 to rank 16", "20 s, 2 times"),
    "merge": ("four SDXL adapters of rank 32 as one, exactly", "3 s, 2 times"),
}


def _cost(*, quick: bool) -> Section:
    rows = []
    for job in get_args(Job):
        what, goal = _GOALS[job]
        for dtype in ("float32", "float16"):
            costs = [_measured(job, dtype, quick=quick) for _ in range(1 if quick else PROCESSES)]
            times = sorted(cost.seconds for cost in costs)
            seconds = f"{statistics.median(times):.1f} s ({times[0]:.1f} to {times[-1]:.1f})"
            memory = f"{max(cost.memory for cost in costs):.2f} times"
            rows.append((f"{what}, {dtype}, {costs[0].modules} modules", seconds, memory, goal))
    return Section(
        "Cost at the size of SDXL",
        f"One thread, in memory. Median of {PROCESSES} processes, which differ in what the system takes "
        "to hand out memory; the most of all, over the bytes of the adapters that go in, which it holds.",
        ("what", "time", "peak memory", "goal"),
        tuple(rows),
    )


def _measured(job: Job, dtype: str, *, quick: bool) -> Cost:
    """The cost in a process of its own, whose peak memory is nobody else's."""
    command = [sys.executable, "-m", "benchmarks.algebra", job, dtype, str(int(quick))]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return Cost(**json.loads(done.stdout))


def sdxl_adapter(seed: int, *, rank: int, dtype: torch.dtype, every: int = 1) -> Adapter:
    """A random adapter on every linear layer in the attention of SDXL's UNet; `every` thins them out."""
    source = torch.Generator().manual_seed(seed)
    layers = {
        f"unet.{name}": module
        for name, module in skeleton(ASSETS / "sdxl" / "unet").named_modules()
        if isinstance(module, nn.Linear) and ".attentions." in name
    }
    modules = {}
    for path in sorted(layers)[::every]:
        out, columns = layers[path].weight.shape
        down = torch.randn(rank, columns, generator=source, dtype=dtype)
        modules[path] = (LoRA(down, torch.randn(out, rank, generator=source, dtype=dtype), 0.5),)
    # As an adapter that was read from a file: its hash is known.
    return Adapter(modules, AdapterMeta(name=f"random{seed}", family="sdxl", file_hash=f"{seed:064x}"))


def _job(job: Job, dtype: torch.dtype, every: int) -> Cost:
    torch.set_num_threads(1)
    count, rank = (1, 64) if job == "resize" else (4, 32)
    # Once on a little of it: libraries load, and their memory is not the job's.
    little = sdxl_adapter(0, rank=rank, dtype=dtype, every=90)
    resize(merge(Stack([(little, 0.5)]))[0], rank=4)
    before = _peak()
    adapters = [sdxl_adapter(seed, rank=rank, dtype=dtype, every=every) for seed in range(count)]
    tensors = [
        t
        for a in adapters
        for (kind,) in a.modules.values()
        for n, t in kind.tensors().items()
        if n != "scale"
    ]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    started = time.perf_counter()
    if job == "resize":
        result = resize(adapters[0], rank=16)
    else:
        result = merge(_stack(adapters, (0.7, 0.4, -0.3, 1.0)))
    seconds = time.perf_counter() - started
    return Cost(seconds, (_peak() - before) / size, len(result[0].modules))


def _peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    _, name, number_format, thin = sys.argv
    assert name in get_args(Job)
    cost = _job(
        "resize" if name == "resize" else "merge", getattr(torch, number_format), 10 if int(thin) else 1
    )
    print(json.dumps({"seconds": cost.seconds, "memory": cost.memory, "modules": cost.modules}))
