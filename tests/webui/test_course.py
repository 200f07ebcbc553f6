"""What a page learns of a training while it runs."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from difflora import StepReport
from webui.work.training import NOTES, _Course


def report(step: int, *notes: str) -> StepReport:
    return StepReport(
        step=step,
        total=10,
        epoch=0,
        loss=0.5,
        grad_norm=1.0,
        learning_rate=1e-4,
        images_per_second=1.0,
        memory_bytes=0,
        notes=notes,
    )


def test_the_last_notes_are_told_without_the_place_of_the_output(tmp_path: Path) -> None:
    output = tmp_path / "outputs"
    desk: Any = SimpleNamespace(
        folder=tmp_path, settings=SimpleNamespace(output=output), progress=lambda done, total: None
    )
    course = _Course(desk)
    course.follow(report(1, f"continued from step 0 ({output}/jobs/1)"))
    assert json.loads((tmp_path / "course.json").read_text())["notes"] == [
        "continued from step 0 (outputs/jobs/1)"
    ]
    for step in range(2, 8):
        course.follow(report(step, f"no previews after step {step}"))
    assert json.loads(course.result())["notes"] == [f"no previews after step {step}" for step in (5, 6, 7)]
    assert NOTES == 3
