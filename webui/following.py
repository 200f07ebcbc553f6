"""A job as a page shows it while it waits, runs and ends."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webui.jobs import Job
from webui.shared import Shared
from webui.work.desk import PREVIEW

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""How events are bound whose outputs say themselves how far they are."""

FOLLOWING: dict[str, Any] = {**QUIET, "concurrency_limit": None}
"""How events are bound that last as long as a job, of which the page may follow any number."""


@dataclass(frozen=True, slots=True)
class View:
    """What to show of a job: `status` is HTML, `pictures` are files that the page may serve, `preview` the
    one of what is being drawn."""

    job: Job
    status: str
    pictures: tuple[str, ...] = ()
    preview: str | None = None


def views(shared: Shared, job: Job) -> Iterator[View]:
    """The job's view whenever something about it changes, until it is over."""
    for now in shared.jobs.follow(job):
        yield view(shared, now)


def view(shared: Shared, job: Job) -> View:
    """The job as it is."""
    names = tuple(name for name in job.files if name != PREVIEW)
    drawing = job.state == "running" and PREVIEW in job.files
    return View(
        job,
        status(job, ahead=shared.jobs.ahead(job)),
        tuple(shared.served(job, names)),
        _fresh(shared.jobs.place(job) / PREVIEW) if drawing else None,
    )


def status(job: Job, *, ahead: int) -> str:
    """How far a job is, as HTML; whatever comes from files or users is text in it."""
    if job.state == "waiting":
        text = html.escape("starting" if ahead == 0 else f"waiting: {ahead} before it")
    elif job.state == "running":
        bar = f'<progress value="{job.done}" max="{job.total}"></progress> ' if job.total else ""
        steps = f" {job.done} of {job.total}" if job.total and job.kind != "train" else ""
        text = f"{bar}{html.escape(job.note)}{steps} · {job.seconds:.0f} s"
    elif job.state == "failed":
        text = f"<b>Error.</b> <span>{html.escape(job.error)}</span>"
    elif job.state == "cancelled":
        text = html.escape(job.note or "cancelled")
    else:
        text = f"done in {job.seconds:.1f} s"
    wrong = " error" if job.state == "failed" else ""
    return f'<div class="status{wrong}" data-job="{job.number}">{text}</div>'


def live(found: View) -> str:
    """What is being drawn, as HTML; nothing once it is drawn."""
    if found.preview is None:
        return ""
    return f'<img class="live" alt="what is being drawn" src="{found.preview}">'


def problem(error: Exception) -> str:
    """An error that came before any job, as HTML."""
    return f'<div class="status error"><b>Error.</b> <span>{html.escape(str(error))}</span></div>'


def _fresh(preview: Path) -> str | None:
    """The preview as a data URL: it changes several times a second, and a path would be cached."""

    try:
        return "data:image/png;base64," + base64.b64encode(preview.read_bytes()).decode()
    except OSError:
        return None
