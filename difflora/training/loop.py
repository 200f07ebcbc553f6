"""train(): a generator of step reports."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
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
    the step; `notes` say what a user should know (where the run resumed, and whether that is bit-exact; a
    preview that could not be drawn).
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
    byte-identical to that of an uninterrupted run (same machine, versions, dtype and threads) on a CPU; on a
    GPU, whose kernels may sum in any order, it is equal up to rounding. Closing the iterator, Ctrl-C and
    SIGTERM save the state first, and so does a step that fails before it has changed anything; before the
    first step signals do what they did before. With `overwrite`, what is there is replaced after the first
    step and not before. A preview that cannot be drawn becomes a note.

    Raises AlreadyTrained if the adapter is there and `overwrite` is off; DataError naming every problem of
    the folder before the base is loaded; ConfigError for options that the base or the machine cannot follow;
    CheckpointError if a checkpoint belongs to another run; TrainingError with step and cause on a loss that
    is not finite; Interrupted after a signal.
    """
    results = results_of(config)
    if results.adapter.exists() and not config.overwrite:
        raise AlreadyTrained(
            f"{results.adapter} is finished; nothing was changed. Train again with overwrite=true "
            "(--overwrite), or give another name."
        )
    with prepared(config, results) as run, stop_request() as stop:
        yield from _steps(run, stop)


def _steps(run: Run, stop: StopRequest) -> Iterator[StepReport]:
    done, notes = run.first_step, run.notes
    while done < run.total:
        report = replace(_step(run, done), notes=notes)
        done, notes = done + 1, ()
        report = _after_step(run, report)
        with _kept(run, done):
            run.log(done, {"loss": report.loss, "learning_rate": report.learning_rate})
        try:
            yield report
        except GeneratorExit:
            if not run.is_saved(done):
                run.checkpoint(done)
            raise
        if run.machine.any(bool(stop)):
            break
    if done < run.total:
        if not run.is_saved(done):
            run.checkpoint(done)
        cause = stop.signal.name if stop.signal else "another process"
        flagless = " without --overwrite" if run.config.overwrite else ""
        raise Interrupted(
            f"stopped by {cause} after step {done} of {run.total}; the state is saved in "
            f"{run.results.checkpoints}. The same command{flagless} continues."
        )


@contextmanager
def _kept(run: Run, step: int) -> Iterator[None]:
    """Saves the state after `step` steps if the block, which does not change it, fails.

    Other processes are not waited for: they may be in the middle of that step.
    """
    try:
        yield
    except Exception as error:
        if not run.is_saved(step):
            folder = run.save(step)
            error.add_note(f"The state after step {step} was saved in {folder or 'another process'}.")
        raise


def _step(run: Run, step: int) -> StepReport:
    """One optimizer step over `accumulation` global batches."""
    config, started = run.config, time.perf_counter()
    batches = range(step * config.accumulation, (step + 1) * config.accumulation)
    images = sum(run.examples.size(batch) for batch in batches)
    with _kept(run, step):
        found = _gradient(run, batches, images)
    _require_finite(run, step, found)
    _update(run, step)
    seconds = time.perf_counter() - started
    return StepReport(
        step=step + 1,
        total=run.total,
        epoch=batches[-1] // run.examples.batches_per_epoch,
        loss=found.loss,
        grad_norm=found.norm,
        learning_rate=float(run.optimizer.param_groups[0]["lr"]),
        images_per_second=images / seconds,
        memory_bytes=run.machine.memory_bytes(),
    )


@dataclass(frozen=True, slots=True)
class _Gradient:
    """The mean loss over the images of a step, and the norm of its gradient before clipping."""

    loss: float
    norm: float


def _gradient(run: Run, batches: range, images: int) -> _Gradient:
    """Computes and clips the gradient of a step; factors and optimizer stay as they are."""
    arenas = run.injected.arenas()
    for arena in arenas:
        arena.grad.zero_()
    loss = torch.zeros((), device=run.machine.device)
    for batch in batches:
        loss += _backward(run, batch, images)
    run.machine.sum_([loss, *(arena.grad for arena in arenas)])
    run.scaler.unscale_(run.optimizer)
    norm = clip(arenas, run.config.max_grad_norm)
    return _Gradient(*torch.stack([loss, norm]).tolist())  # read together: a GPU is waited for once


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


def _require_finite(run: Run, step: int, found: _Gradient) -> None:
    """Raises TrainingError for a loss or gradient that is not. Nothing is saved: the state has led there."""
    if not math.isfinite(found.loss):
        raise TrainingError(run.why_not_finite(step, found.loss))
    if (
        not math.isfinite(found.norm) and not run.scaler.is_enabled()
    ):  # with loss scaling, such a step is skipped and the scale lowered
        raise TrainingError(run.why_not_finite(step, found.norm))


def _update(run: Run, step: int) -> None:
    """Takes the optimizer's step. One that fails may have changed a part of the factors."""
    factor = lr_factor(step, run.total, run.config)
    for group, rate in zip(run.optimizer.param_groups, run.rates, strict=True):
        group["lr"] = rate * factor
    run.scaler.step(run.optimizer)
    run.scaler.update()


def _after_step(run: Run, report: StepReport) -> StepReport:
    """Writes what is due after a step, and says so in the report."""
    config, is_last = run.config, report.step == run.total
    if report.step == 1 and config.overwrite:
        report = replace(report, notes=(*report.notes, *run.set_aside()))
    if is_last:
        report = replace(report, adapter=run.finish(report.loss))
    elif report.step % config.save_every == 0:
        report = replace(report, checkpoint=run.checkpoint(report.step))
    if config.preview_every and (report.step % config.preview_every == 0 or is_last) and run.machine.is_main:
        report = _with_previews(run, report)
    return report


def _with_previews(run: Run, report: StepReport) -> StepReport:
    """The report with the previews, or with a note: no picture is worth the end of a training."""
    try:
        return replace(report, previews=tuple(run.draw_previews(report.step)))
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        note = f"no previews after step {report.step}, and what is learned is not touched by that: {why}"
        return replace(report, notes=(*report.notes, note))
