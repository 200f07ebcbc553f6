"""A job as a page shows it while it waits, runs and ends."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from webui.jobs import Job
from webui.shared import Shared
from webui.work.desk import PREVIEW

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""How events are bound whose outputs say themselves how far they are."""

FOLLOWING: dict[str, Any] = {**QUIET, "concurrency_limit": None}
"""How events are bound that last as long as a job, of which the page may follow any number."""

_ERROR = "<b>Error.</b> <span>{}</span>"


@dataclass(frozen=True, slots=True)
class View:
    """What to show of a job: `status` is HTML, `pictures` are files that the page may serve, `preview` the
    one of what is being drawn."""

    job: Job
    status: str
    pictures: tuple[str, ...] = ()
    preview: str | None = None


def views(shared: Shared, job: Job) -> Iterator[View]:
    """The job's view whenever something about it changes, until it is over. The owner's jobs of its kind that
    come before it are shown first: what is asked for while one is drawn waits in sight."""
    while (front := shared.jobs.before(job)).number != job.number:
        yield from (view(shared, now) for now in shared.jobs.follow(front))
    yield from (view(shared, now) for now in shared.jobs.follow(job))


def returning(
    shared: Shared, kind: str, shown: Callable[[View], list[Any]], *, outputs: int
) -> Callable[[gr.Request], Iterator[list[Any]]]:
    """What shows a page that is opened its visitor's newest job of a kind, as `shown` makes updates of it for
    so many outputs."""

    def on_load(request: gr.Request) -> Iterator[list[Any]]:
        yield [gr.skip()] * outputs  # what yields nothing empties its outputs
        for job in shared.jobs.of(shared.owner(request), kind=kind, limit=1):
            yield from map(shown, views(shared, job))

    return on_load


def view(shared: Shared, job: Job) -> View:
    """The job as it is."""
    names = tuple(name for name in job.files if name != PREVIEW)
    drawing = job.state == "running" and PREVIEW in job.files
    return View(
        job,
        status(
            job, ahead=shared.jobs.ahead(job), behind=shared.jobs.behind(job) if job.state == "running" else 0
        ),
        tuple(shared.served(job, names)),
        _fresh(shared.jobs.place(job) / PREVIEW) if drawing else None,
    )


def status(job: Job, *, ahead: int, behind: int = 0) -> str:
    """How far a job is, as HTML; whatever comes from files or users is text in it."""
    if job.state == "waiting":
        text = html.escape("starting" if ahead == 0 else f"waiting: {ahead} before it")
    elif job.state == "running":
        bar = f'<progress value="{job.done}" max="{job.total}"></progress> ' if job.total else ""
        waiting = f" · {behind} more in line" if behind else ""
        steps = f" {job.done} of {job.total}" if job.total and job.kind != "train" else ""
        text = f"{bar}{html.escape(job.note)}{steps} · {job.seconds:.0f} s{waiting}"
    elif job.state == "failed":
        text = _ERROR.format(html.escape(job.error))
    elif job.state == "cancelled":
        text = html.escape(job.note or "cancelled")
    else:
        text = f"done in {job.seconds:.1f} s"
    return notice(text, is_error=job.state == "failed", job=job.number)


def live(found: View) -> str:
    """What is being drawn, as HTML; nothing once it is drawn."""
    if found.preview is None:
        return ""
    return f'<img class="live" alt="what is being drawn" src="{found.preview}">'


def problem(error: Exception) -> str:
    """An error that came before any job, as HTML."""
    return notice(_ERROR.format(html.escape(str(error))), is_error=True)


def notice(markup: str, *, is_error: bool = False, job: int | None = None) -> str:
    """One place of the page that tells something. `markup` is HTML, in which text is escaped already; `job`
    is the number of the job that it is about."""
    classes = "status error" if is_error else "status"
    about = "" if job is None else f' data-job="{job}"'
    return f'<div class="{classes}"{about}>{markup}</div>'


def kept(facts: Mapping[str, Any]) -> str:
    """What an arithmetic job has written, from its result, as HTML."""
    what = html.escape(str(facts.get("adapter") or facts.get("base")))
    lost = f"{facts['error']:.2%} of ΔW lost" if facts["error"] else "exact"
    rounding = facts.get("rounding")
    rounded = f", factors rounded by {rounding:.1e} at most" if rounding else ""
    return notice(f"kept as <b>{what}</b>: {lost}{rounded}")


def _fresh(preview: Path) -> str | None:
    """The preview as a data URL: it changes several times a second, and a path would be cached."""

    try:
        return "data:image/png;base64," + base64.b64encode(preview.read_bytes()).decode()
    except OSError:
        return None
