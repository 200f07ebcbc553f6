"""What the trainers share: Muon and AdamW with a moving average, which checkpoint and resume bit for bit."""

import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from difflora.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's own names for its two running means
MOMENTUM = "momentum_buffer"  # Muon's
ADAMW_SHARE = 0.4  # of Muon's rate, beside it
SAME_UNTIL = 0.4  # of its steps: a longer run is the same so far; then the VAE's crops end
SMALLEST_SIDE = 32  # of what counts as a matrix: orthogonal rows mean little in a narrow one


@dataclass(frozen=True, slots=True)
class Rate:
    """Learning rate: linear warm-up to `peak`, held for half of `total` steps, then a cosine to a fiftieth.

    Holding first leaves the beginning of a run the same when it is given more steps.
    """

    peak: float
    total: int
    warmup: int = 50

    def at(self, step: int) -> float:
        half = self.total / 2
        progress = min(1.0, max(0.0, (step - half) / half))
        return self.peak * min(1.0, (step + 1) / self.warmup) * (0.51 + 0.49 * math.cos(math.pi * progress))


class Trainee:
    """Named parameters under training, with their optimizers, moving average and count of steps made.

    `origin` says what else the training depends on, such as its seed; a checkpoint of another is refused.

    Muon trains those named in `orthogonal`, as matrices of one row an output, at the whole rate; AdamW trains
    the rest, at `ADAMW_SHARE` of it beside Muon. On the UNet Muon took half as many steps to the same loss.
    Source: Jordan et al. 2024 (Muon), Liu et al. 2025 (its scale beside AdamW's).
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        rate: Rate,
        decay: float,
        orthogonal: Collection[str] = (),
        origin: str = "",
    ) -> None:
        self.origin = origin
        self.parameters = dict(parameters)
        self.rate = rate
        self.decay = decay
        self.step = 0
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.matrices = {name: nn.Parameter(_rows(self.parameters[name])) for name in orthogonal}
        self.others = {name: p for name, p in self.parameters.items() if name not in self.matrices}
        self.adamw = torch.optim.AdamW(
            self.others.values(), lr=rate.peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.muon = (
            torch.optim.Muon(
                self.matrices.values(),
                lr=rate.peak,
                weight_decay=0.01,
                ns_steps=4,  # of the usual 5: a fifth less of what it costs
                adjust_lr_fn="match_rms_adamw",
            )
            if self.matrices
            else None
        )

    def update(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`, clipped to norm 1, and the average after it."""
        for parameter in self.parameters.values():
            parameter.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        rate = self.rate.at(self.step)
        if self.muon is not None:
            for name, matrix in self.matrices.items():
                matrix.grad = _rows(self.parameters[name].grad, like=self.parameters[name])
            _step(self.muon, rate)
            rate *= ADAMW_SHARE
        _step(self.adamw, rate)
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
        tensors |= self._optimizer_state()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        words = {"step": str(self.step), "total": str(self.rate.total), "origin": self.origin}
        save_file({name: t.contiguous() for name, t in tensors.items()}, partial, words)
        os.replace(partial, file)

    @torch.no_grad()
    def load(self, file: Path) -> None:
        """Continue from `file`, as written by `save`.

        Raises CheckpointError if the file holds other parameters than this trainee, or began otherwise, or is
        of a run of another length past the steps that both have alike.
        """
        with safe_open(file, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
            words = stored.metadata()
        if words.get("origin") != self.origin:
            raise CheckpointError(
                f"{file}: this checkpoint began otherwise: got '{words.get('origin')}', expected "
                f"'{self.origin}'. Move it away to begin again."
            )
        step, total = int(words["step"]), int(words["total"])
        if total != self.rate.total and step > SAME_UNTIL * min(total, self.rate.total):
            raise CheckpointError(
                f"{file}: step {step} of a training of {total} steps is none of one of {self.rate.total}. "
                "Give that length, or move it away to begin again."
            )
        expected = {f"{key}.{name}" for key in ("average", "parameter") for name in self.parameters}
        expected |= {f"{key}.{name}" for key in MOMENTS for name in self.others}
        expected |= {f"{MOMENTUM}.{name}" for name in self.matrices}
        if tensors.keys() != expected:
            raise CheckpointError(
                f"{file.name}: this checkpoint holds other tensors than the model under training: got "
                f"{len(tensors)}, expected {len(expected)}. Move it away to begin again."
            )
        self.step = step
        for name, average in self.average.items():
            average.copy_(tensors[f"average.{name}"])  # in its own memory layout, as below
        self.fill({name: tensors[f"parameter.{name}"] for name in self.parameters})
        for name, parameter in self.others.items():
            self.adamw.state[parameter] = {
                "step": torch.tensor(float(self.step)),
                # In the parameter's own memory layout: the fused AdamW walks both in the order of memory.
                **{key: torch.empty_like(parameter).copy_(tensors[f"{key}.{name}"]) for key in MOMENTS},
            }
        if self.muon is not None:
            for name, matrix in self.matrices.items():
                self.muon.state[matrix] = {MOMENTUM: tensors[f"{MOMENTUM}.{name}"]}

    def _optimizer_state(self) -> dict[str, Tensor]:
        found = {
            f"{key}.{name}": self.adamw.state[parameter][key]
            for name, parameter in self.others.items()
            for key in MOMENTS
        }
        if self.muon is not None:
            for name, matrix in self.matrices.items():
                found[f"{MOMENTUM}.{name}"] = self.muon.state[matrix][MOMENTUM]
        return found

    @torch.no_grad()
    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Set every parameter to its value by name."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


def hidden_matrices(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """The names of the weights that Muon is for: of layers between others, no embedding, no narrow one."""
    return [
        name
        for name, parameter in parameters.items()
        if parameter.ndim > 1
        and "embedding" not in name
        and min(parameter.shape[0], parameter[0].numel()) >= SMALLEST_SIDE
    ]


def _step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _rows(weight: Tensor | None, *, like: Tensor | None = None) -> Tensor:
    """(out, rest) of a weight, sharing its memory where it is laid out as `like`, by default itself.

    The columns are in the order of memory, which for Muon is as good as any.
    """
    assert weight is not None, "every parameter takes part in the loss"
    weight, like = weight.detach(), weight if like is None else like
    is_last = (
        like.ndim == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    )
    return (weight.permute(0, 2, 3, 1) if is_last else weight).flatten(1)


def named(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    """The module's parameters under `prefix.`, so that several modules fit into one trainee."""
    return {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}


def generator(seed: int, step: int) -> torch.Generator:
    """The randomness of one step: a function of seed and step alone, so that a resumed run sees the same."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
