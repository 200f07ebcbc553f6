"""How things are measured: interleaved, medians with their spread, after a warm-up."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call: the median, and the distance between the quartiles."""

    median: float
    spread: float

    def __str__(self) -> str:
        return f"{self.median * 1e3:.1f} ms ± {self.spread / 2 * 1e3:.1f}"


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. `ratio` is stated in words by `meaning`, such as "images/s, ours / peer's"; `goal` says
    whether it was met."""

    what: str
    ours: str
    peer: str
    ratio: float
    meaning: str
    goal: str = ""


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 3
) -> dict[str, Timing]:
    """Times every call `rounds` times in turn, each round beginning with the next one, A B C B C A C A B ...,
    so that drift of the machine, and what a call leaves behind for the one after it, meet all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(warmup + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = _now()
            calls[name]()
            if turn >= warmup:
                seconds[name].append(_now() - started)
    return {name: _timing(values) for name, values in seconds.items()}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _timing(values: list[float]) -> Timing:
    first, median, third = statistics.quantiles(values, n=4)
    return Timing(median, third - first)


def saved_bytes(forward: Callable[[], object]) -> int:
    """Bytes of distinct storage that a forward pass keeps for its backward pass.

    Parameters, and views such as a Linear's transposed weight, are not counted: they are there anyway.
    """
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        owner = tensor if tensor._base is None else tensor._base
        if not isinstance(owner, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(kept.values())


class KernelCount(TorchDispatchMode):
    """Counts operators that compute: every dispatched one that does not merely view its input."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func.overloadpacket.__name__ not in ("detach", "_unsafe_view"):
            self.kernels += 1
        return func(*args, **(kwargs or {}))
