"""The visitor's jobs in a list, folded away: what waits, what runs, and what became of the others."""

from __future__ import annotations

import html
import time

import gradio as gr

from webui.following import QUIET
from webui.jobs import Job
from webui.shared import Shared

EVERY = 1.0  # seconds between two looks while the list is open
LISTED = 20
TITLES = {
    "generate": "pictures",
    "grid": "sheet of a blend",
    "train": "training",
    "merge": "mix as one adapter",
    "resize": "smaller adapter",
    "convert": "adapter in another format",
    "bake": "base with a mix in it",
    "meet": "interference",
    "compare": "comparison",
}


def build(shared: Shared) -> None:
    """The list, and the button that ends all that is not over."""
    with gr.Accordion("Your jobs", open=False, elem_id="queue") as folded:
        listed = gr.HTML(elem_id="queue-list")
        stop = gr.Button("Cancel all that wait or run", size="sm", elem_id="cancel-all")
    timer = gr.Timer(EVERY, active=False)

    def look(request: gr.Request) -> str:
        return told(shared.jobs.of(shared.owner(request), limit=LISTED))

    def cancel(request: gr.Request) -> str:
        owner = shared.owner(request)
        for job in shared.jobs.of(owner, limit=None):
            if not job.is_over:
                shared.jobs.cancel(job.number, owner)
        return look(request)

    folded.expand(look, None, listed, **QUIET)
    folded.expand(lambda: gr.Timer(active=True), None, timer, **QUIET)
    folded.collapse(lambda: gr.Timer(active=False), None, timer, **QUIET)
    timer.tick(look, None, listed, **QUIET)
    stop.click(cancel, None, listed, api_visibility="private")


def told(jobs: list[Job]) -> str:
    """The jobs as HTML, the newest first; whatever comes from files or users is text in it."""
    rows = "".join(
        f"<tr><td>{job.number}</td><td>{TITLES.get(job.kind, job.kind)}</td><td>{job.state}</td>"
        f"<td>{html.escape(_course(job))}</td><td>{_ago(job)}</td></tr>"
        for job in jobs
    )
    return f'<div class="facts"><table>{rows}</table></div>' if rows else "none yet"


def _course(job: Job) -> str:
    if job.state == "done":
        return f"in {job.seconds:.1f} s"
    if job.state == "running" and job.total:
        return f"{job.note} {job.done} of {job.total}" if job.kind != "train" else job.note
    return job.error or job.note


def _ago(job: Job) -> str:
    """When the job was asked for."""
    return time.strftime("%d %b %H:%M", time.localtime(job.created))
