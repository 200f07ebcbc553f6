"""train(): a generator of step reports."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from difflora.errors import AlreadyTrained, Interrupted, TrainingError
from difflora.training.config import TrainConfig
from difflora.training.interrupt import StopRequest, stop_request
from difflora.training.loss import draw, weighted_error
from difflora.training.optimizers import clip
from difflora.training.results import results_of
from difflora.training.run import Run, prepared
from difflora.training.schedules import lr_factor


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did.

    `step` counts the steps done, of `total`; `loss` is the mean over the step's images; `images_per_second`
    counts all processes. `checkpoint`, `previews` and, in the last report, `adapter` are files written after
    the step; `notes` say what a user should know (where the run resumed, and whether that is bit-exact).
    """

    step: int
    total: int
    epoch: int
    loss: float
    grad_norm: float
    learning_rate: float
    images_per_second: float
    memory_bytes: int
    checkpoint: Path | None = None
    previews: tuple[Path, ...] = ()
    adapter: Path | None = None
    notes: tuple[str, ...] = ()


def train(config: TrainConfig) -> Generator[StepReport, None, None]:
    """Trains an adapter as `config` says; yields a report after every optimizer step.

    The same call after an interruption continues from the newest checkpoint, and the finished file is
    byte-identical to that of an uninterrupted run (same machine, versions, dtype and threads). Closing the
    iterator, Ctrl-C and SIGTERM save the state first.

    Raises AlreadyTrained if the adapter is there and `overwrite` is off; DataError naming every problem of
    the folder before the base is loaded; CheckpointError if a checkpoint belongs to another run;
    TrainingError with step and cause on a loss that is not finite; Interrupted after a signal.
    """
    results = results_of(config)
    if config.overwrite:
        shutil.rmtree(results.checkpoints, ignore_errors=True)
        if results.adapter.exists():  # set aside, so that the new run can be continued without the flag
            results.adapter.replace(results.replaced)
    elif results.adapter.exists():
        raise AlreadyTrained(
            f"{results.adapter} is finished; nothing was changed. Train again with overwrite=true "
            "(--overwrite), or give another name."
        )
    with stop_request() as stop, prepared(config, results) as run:
        yield from _steps(run, stop)


def _steps(run: Run, stop: StopRequest) -> Iterator[StepReport]:
    done, notes = run.first_step, run.notes
    is_saved = True
    while done < run.total:
        report = replace(_step(run, done), notes=notes)
        done, notes = done + 1, ()
        report = _after_step(run, report, is_last=done == run.total)
        is_saved = report.checkpoint is not None or report.adapter is not None
        run.log(report.step, {"loss": report.loss, "learning_rate": report.learning_rate})
        try:
            yield report
        except GeneratorExit:
            if not is_saved:
                run.checkpoint(done)
            raise
        if run.machine.any(bool(stop)):
            break
    if done < run.total and not is_saved:
        run.checkpoint(done)
    if done < run.total:
        cause = stop.signal.name if stop.signal else "another process"
        flagless = " without --overwrite" if run.config.overwrite else ""
        raise Interrupted(
            f"stopped by {cause} after step {done} of {run.total}; the state is saved in "
            f"{run.results.checkpoints}. The same command{flagless} continues."
        )


def _step(run: Run, step: int) -> StepReport:
    """One optimizer step over `accumulation` global batches."""
    config, started = run.config, time.perf_counter()
    batches = range(step * config.accumulation, (step + 1) * config.accumulation)
    images = sum(run.examples.size(batch) for batch in batches)
    arenas = run.injected.arenas()
    for arena in arenas:
        arena.grad.zero_()
    loss = torch.zeros((), device=run.machine.device)
    for batch in batches:
        loss += _backward(run, batch, images)
    run.machine.sum_([loss, *(arena.grad for arena in arenas)])
    value = float(loss)
    if not math.isfinite(value):
        raise TrainingError(run.why_not_finite(step, value))
    norm = _update(run, step)
    seconds = time.perf_counter() - started
    return StepReport(
        step=step + 1,
        total=run.total,
        epoch=batches[-1] // run.examples.batches_per_epoch,
        loss=value,
        grad_norm=norm,
        learning_rate=float(run.optimizer.param_groups[0]["lr"]),
        images_per_second=images / seconds,
        memory_bytes=run.machine.memory_bytes(),
    )


def _backward(run: Run, batch: int, images: int) -> torch.Tensor:
    """Adds this process's share of the gradient of a global batch; returns its share of the mean loss of the
    step."""
    rows = run.machine.rows(run.examples.size(batch))
    if not rows:
        return torch.zeros((), device=run.machine.device)
    inputs = run.examples.load(batch, rows)
    noised = draw(inputs.latents, run.diffusion, run.config, seed=run.config.seed, batch=batch, rows=rows)
    noised = run.with_preserved(noised, inputs)
    prediction = run.predict(noised, inputs)
    device = prediction.device
    loss = weighted_error(prediction, noised.target.to(device), noised.weights.to(device)) / images
    run.scaler.scale(loss).backward()
    return loss.detach()


def _update(run: Run, step: int) -> float:
    """Unscales and clips the gradients and takes the optimizer's step; returns the gradient's norm before
    clipping."""
    factor = lr_factor(step, run.total, run.config)
    for group, rate in zip(run.optimizer.param_groups, run.rates, strict=True):
        group["lr"] = rate * factor
    run.scaler.unscale_(run.optimizer)
    norm = clip(run.injected.arenas(), run.config.max_grad_norm)
    if (
        not math.isfinite(norm) and not run.scaler.is_enabled()
    ):  # with loss scaling, such a step is skipped and the scale lowered
        raise TrainingError(run.why_not_finite(step, norm))
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return norm


def _after_step(run: Run, report: StepReport, *, is_last: bool) -> StepReport:
    """Writes what is due after a step, and says so in the report."""
    config = run.config
    if is_last:
        report = replace(report, adapter=run.finish(report.loss))
    elif report.step % config.save_every == 0:
        report = replace(report, checkpoint=run.checkpoint(report.step))
    # Drawn after what was learned is safe: a preview that fails loses nothing.
    if config.preview_every and (report.step % config.preview_every == 0 or is_last) and run.machine.is_main:
        report = replace(report, previews=tuple(run.draw_previews(report.step)))
    return report
