"""The devices and processes that a run uses, through accelerate."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor

from difflora.data.plan import share_of
from difflora.errors import ConfigError
from difflora.families.hardware import has_bfloat16, pick_device
from difflora.training.config import Precision, TrainConfig

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LIBRARIES = ("difflora", "torch", "diffusers", "transformers", "accelerate")


@dataclass(frozen=True, slots=True, eq=False)
class Machine:
    """Where a run computes: one process of `accelerator.num_processes`, and the dtype of the base."""

    accelerator: Accelerator
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.accelerator.is_main_process

    def rows(self, count: int) -> range:
        """The rows of a global batch of `count` rows that this process computes; may be empty."""
        return share_of(count, process=self.accelerator.process_index, processes=self.processes)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sums each tensor over all processes, in place."""
        if self.processes > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process: they must leave the loop at the same step."""
        if self.processes == 1:
            return flag
        asked = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(asked)
        return bool(asked)

    def forget_peak(self) -> None:
        """Counts the peak memory of a GPU from now on: what came before is no part of a step."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory_bytes(self) -> int:
        """Peak memory of the accelerator since `forget_peak`; on a CPU the peak of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            import resource
        except ImportError:  # Windows has no such counter
            return 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024


def start_machine(config: TrainConfig) -> Machine:
    """Joins the processes that `accelerate launch` or `torchrun` started, and picks device and precision.

    On CPUs the processes talk through gloo. Raises ConfigError if the device is not there, or
    cannot compute in the precision.
    """
    device = pick_device(config.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate takes the current one
    precision = pick_precision(config.precision, device)
    if PartialState(cpu=device.type == "cpu").num_processes == 1:
        # accelerate keeps the first run's settings as long as the process lives; a web UI trains often.
        AcceleratorState._reset_state(reset_partial_state=True)
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    logger = "tensorboard" if config.tensorboard else None
    accelerator = Accelerator(
        cpu=device.type == "cpu", mixed_precision=mixed, log_with=logger, project_dir=config.output / "logs"
    )
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return Machine(accelerator, _DTYPES[precision])


def pick_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The precision asked for; for auto bf16 on a GPU that computes in it itself, fp16 on another, else fp32.

    Raises ConfigError for fp16 on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision='fp16' needs a GPU, and the device is the CPU: use 'fp32' or 'bf16'")
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if has_bfloat16(device) else "fp16"


def environment(machine: Machine) -> dict[str, str]:
    """What bit-identity depends on beside the configuration: versions, device and dtype."""
    device = machine.device.type
    name = torch.cuda.get_device_name(machine.device) if device == "cuda" else platform.machine()
    libraries = {library: version(library) for library in _LIBRARIES}
    return libraries | {"device": f"{device} {name}", "dtype": str(machine.dtype).removeprefix("torch.")}
