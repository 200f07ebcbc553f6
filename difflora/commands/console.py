"""What the verbs print: results and notes as lines, progress as a bar on a terminal and lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from difflora.training.loop import StepReport

SMOOTHING = 0.9
LINES = 20  # about how many progress lines a run writes where there is no terminal


def is_main_process() -> bool:
    """Whether this is the process that speaks, of those that `accelerate launch` or `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


def make_console() -> Console:
    """The console for results: no markup (paths hold brackets), no wrapping of long lines."""
    return Console(
        file=sys.stdout,
        markup=False,
        highlight=False,
        soft_wrap=True,
        emoji=False,
        quiet=not is_main_process(),
    )


class Meter(Protocol):
    """Shows how far a piece of work is."""

    def show(self, done: int, total: int, words: str) -> None:
        """`done` of `total` steps, and what else to say."""
        ...


@dataclass
class BarMeter:
    """A progress bar on a terminal."""

    bar: Progress
    task: TaskID

    def show(self, done: int, total: int, words: str) -> None:
        self.bar.update(self.task, completed=done, total=total, words=f"{done}/{total} {words}")


@dataclass
class LineMeter:
    """The first and the last step, and about LINES lines between them, a second apart at least."""

    console: Console
    label: str
    first: int | None = None
    started: float = 0.0
    spoke: float = 0.0

    def show(self, done: int, total: int, words: str) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.started = done, now
        elif done < total and (done % max(1, total // LINES) or now - self.spoke < 1.0):
            return
        self.spoke = now
        steps = done - self.first
        left = (now - self.started) / steps * (total - done) if steps else None
        eta = "" if left is None or done == total else f"  {_clock(left)} left"
        self.console.print(f"{self.label} {done}/{total}  {words}{eta}")


@contextmanager
def meter(console: Console, label: str) -> Iterator[Meter]:
    """A Meter for the length of a `with` block; until the first `show` it says that work is prepared."""
    if not console.is_terminal or console.quiet:
        console.print(f"{label}: preparing")
        yield LineMeter(console, label)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[words]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console) as bar:
        yield BarMeter(bar, bar.add_task(label, total=None, words="preparing"))


def follow(reports: Iterable[StepReport], console: Console, *, label: str) -> StepReport | None:
    """Consumes a training run and shows it; returns the last report. Notes are printed as they come."""
    last: StepReport | None = None
    smooth = 0.0
    with meter(console, label) as shown:
        for count, last in enumerate(reports, 1):
            smooth = SMOOTHING * smooth + (1 - SMOOTHING) * last.loss
            loss = smooth / (1 - SMOOTHING**count)
            for note in last.notes:
                console.print(note)
            if last.previews:
                console.print(f"previews after step {last.step}: {last.previews[0].parent}")
            shown.show(last.step, last.total, _facts(last, loss))
    return last


def _facts(report: StepReport, loss: float) -> str:
    memory = f"  {report.memory_bytes / 2**30:.1f} GiB" if report.memory_bytes else ""
    rate = f"{report.images_per_second:.1f} images/s"
    return f"loss {loss:.4f}  rate {report.learning_rate:.1e}  {rate}{memory}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
