"""A training, which ends with an adapter in the library and can be continued after any interruption."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from difflora import Interrupted, StepReport, configure, train
from webui.work.desk import FROZEN, Cancelled, Desk, Done, Ended

COURSE = "course.json"
CURVE = 400  # points of the loss that are kept for the plot
NOTES = 3  # how many of the last are shown
_PREVIEW = "step-"


class Training(BaseModel):
    """`options` are fields of TrainConfig; the output folder is the library's own."""

    model_config = FROZEN

    options: dict[str, Any] = Field(description="Fields of TrainConfig, but for output.")


def training(wanted: Training, desk: Desk) -> Done:
    """Trains. A stop keeps the state: the same request continues it.

    Raises what `configure` and `train` do.
    """
    config = configure({**wanted.options, "output": desk.settings.adapters})
    if (desk.folder / COURSE).exists():  # begun before its server ended: it starts anew once alone
        config = config.model_copy(update={"overwrite": False})
    desk.say("reading the images and loading the base")
    desk.bases.forget()
    course = _Course(desk)
    try:
        with closing(train(config)) as reports:  # closing it saves the state
            for report in reports:
                course.follow(report)
    except Interrupted as stopped:  # by the signal that ends the worker; the state is saved
        raise Ended from stopped
    if course.files:  # the library shows it
        cover = desk.settings.adapters / f"{course.adapter}.preview.png"
        shutil.copyfile(desk.folder / course.files[-1], cover)
    return Done(course.files, course.result())


class _Course:
    """What the page shows of a training: its loss so far, its speed, its previews."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.losses: list[tuple[int, float]] = _past(desk)
        self.files = tuple(sorted(path.name for path in desk.folder.glob(f"{_PREVIEW}*.png")))
        self.adapter = ""
        self.notes: list[str] = []
        self.started, self.first = time.monotonic(), 0

    def follow(self, report: StepReport) -> None:
        """Raises Cancelled if the training was asked to stop."""
        if not self.first:  # what was done after the state that it goes on from is done again
            self.first = report.step
            self.losses = [point for point in self.losses if point[0] < report.step]
            self.files = tuple(name for name in self.files if step_of(name) < report.step)
        self.losses.append((report.step, report.loss))
        output = self.desk.settings.output  # where that lies is nobody's business
        self.notes += [note.replace(str(output), output.name) for note in report.notes]
        for preview in report.previews:
            name = f"{_PREVIEW}{report.step:06}-{len(self.files):03}.png"
            shutil.copyfile(preview, self.desk.folder / name)
            self.files = (*self.files, name)
        if report.adapter is not None:
            self.adapter = report.adapter.stem
            return
        done = report.step - self.first
        left = (time.monotonic() - self.started) / done * (report.total - report.step) if done else None
        self.desk.files = self.files
        self.desk.note = _line(report, left)
        (self.desk.folder / COURSE).write_text(self.result(), encoding="utf-8")
        try:
            self.desk.progress(report.step, report.total)
        except Cancelled:
            raise Cancelled(
                f"stopped after step {report.step} of {report.total}, the state is saved: Resume continues it"
            ) from None

    def result(self) -> str:
        """JSON with the name of the adapter, "" before the end, the loss over the steps, and the last of what
        the training had to say."""
        every = -(-len(self.losses) // CURVE)
        course = {"adapter": self.adapter, "loss": self.losses[::every], "notes": self.notes[-NOTES:]}
        return json.dumps(course)


def step_of(preview: str) -> int:
    """The step that a preview was drawn at, out of the name of its file."""
    return int(Path(preview).name.removeprefix(_PREVIEW).split("-")[0])


def _past(desk: Desk) -> list[tuple[int, float]]:
    """The losses of this job before its server ended, as far as they were kept."""
    try:
        course = json.loads((desk.folder / COURSE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [(step, loss) for step, loss in course["loss"]]


def _line(report: StepReport, left: float | None) -> str:
    memory = f", {report.memory_bytes / 2**30:.1f} GiB" if report.memory_bytes else ""
    eta = "" if left is None else f", {int(left) // 60}:{int(left) % 60:02} left"
    rate = f"rate {report.learning_rate:.1e}"
    speed = f"{report.images_per_second:.1f} images/s"
    return f"step {report.step} of {report.total}: loss {report.loss:.4f}, {rate}, {speed}{memory}{eta}"
