"""What both trainers share: AdamW with a moving average, which checkpoints and resumes bit for bit."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from difflora.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's own names for its two running means


@dataclass(frozen=True, slots=True)
class Rate:
    """Learning rate: linear warm-up to `peak`, held for half of `total` steps, then a cosine to a fiftieth.

    Holding first leaves the beginning of a run the same when it is given more steps later.
    """

    peak: float
    total: int
    warmup: int = 50

    def at(self, step: int) -> float:
        half = self.total / 2
        progress = min(1.0, max(0.0, (step - half) / half))
        return self.peak * min(1.0, (step + 1) / self.warmup) * (0.51 + 0.49 * math.cos(math.pi * progress))


class Trainee:
    """Named parameters under training, with their optimizer, moving average and count of steps made."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, rate: Rate, decay: float) -> None:
        self.parameters = dict(parameters)
        self.rate = rate
        self.decay = decay
        self.step = 0
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=rate.peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )

    def update(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`, clipped to norm 1, and the average after it."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate.at(self.step)
        self.optimizer.step()
        self.step += 1
        share = 1 - min(self.decay, (1 + self.step) / (10 + self.step))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.detach(), share)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters hold their moving average."""
        current = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            self.fill(self.average)
            yield
        finally:
            self.fill(current)

    def adopt_average(self) -> None:
        """Make the moving average the parameters, for good."""
        self.fill(self.average)

    def save(self, file: Path) -> None:
        """Write all state to `file`, which is replaced whole or not at all."""
        tensors = {f"average.{name}": tensor for name, tensor in self.average.items()}
        for name, parameter in self.parameters.items():
            tensors[f"parameter.{name}"] = parameter.detach()
            tensors |= {f"{key}.{name}": self.optimizer.state[parameter][key] for key in MOMENTS}
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({name: t.contiguous() for name, t in tensors.items()}, partial, {"step": str(self.step)})
        os.replace(partial, file)

    @torch.no_grad()
    def load(self, file: Path) -> None:
        """Continue from `file`, as written by `save`.

        Raises CheckpointError if the file holds other parameters than this trainee.
        """
        with safe_open(file, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
            self.step = int(stored.metadata()["step"])
        expected = {f"{key}.{name}" for key in ("average", "parameter", *MOMENTS) for name in self.parameters}
        if tensors.keys() != expected:
            raise CheckpointError(
                f"{file.name}: this checkpoint holds other tensors than the model under training: got "
                f"{len(tensors)}, expected {len(expected)}. Move it away to begin again."
            )
        self.average = {name: tensors[f"average.{name}"] for name in self.parameters}
        self.fill({name: tensors[f"parameter.{name}"] for name in self.parameters})
        for name, parameter in self.parameters.items():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step)),
                # In the parameter's own memory layout: the fused AdamW walks both in the order of memory.
                **{key: torch.empty_like(parameter).copy_(tensors[f"{key}.{name}"]) for key in MOMENTS},
            }

    @torch.no_grad()
    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Set every parameter to its value by name."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


def named(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    """The module's parameters under `prefix.`, so that several modules fit into one trainee."""
    return {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}


def generator(seed: int, step: int) -> torch.Generator:
    """The randomness of one step: a function of seed and step alone, so that a resumed run sees the same."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
