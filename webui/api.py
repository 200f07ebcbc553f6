"""The named endpoints of the page, for scripts: `Client(url).predict(..., api_name="/generate")`.

They put the same jobs into the same queue as the page, and wait for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from pydantic import BaseModel, ValidationError

from difflora import DiffloraError, Request, configure
from webui.following import View, view
from webui.shared import Shared
from webui.shelf import Query, found
from webui.work.contact import Contact, SheetAxis
from webui.work.desk import MixRow
from webui.work.draw import Draw
from webui.work.training import Training


def build(shared: Shared) -> None:
    """Puts the endpoints on the page that is being built."""
    for endpoint in (*_drawing(shared), *_others(shared)):
        gr.api(_told(endpoint), api_name=endpoint.__name__, concurrency_limit=None)


def _drawing(shared: Shared) -> tuple[Callable[..., Any], ...]:
    def generate(
        prompt: str,
        request: gr.Request,
        negative: str = "",
        mix: dict[str, float] | None = None,
        settings: dict[str, Any] | None = None,
        count: int = 1,
        base: str = "",
    ) -> list[FileData]:
        """Draws `count` images. `mix` maps adapters to weights, `settings` are further fields of a Request
        (seed, steps, guidance, sampler, width, height ...), `base` is by default that of the page. Returns
        PNG files, each with its recipe inside."""
        wanted = Draw(
            base=base or shared.settings.base_model,
            request=Request(prompt=prompt, negative=negative, **(settings or {})),
            mix=_rows(mix or {}),
            count=count,
        )
        return _files(_done(shared, request, "generate", wanted))

    def grid(
        prompt: str,
        request: gr.Request,
        mix: dict[str, float],
        axes: list[dict[str, Any]],
        settings: dict[str, Any] | None = None,
        base: str = "",
    ) -> list[FileData]:
        """Draws a contact sheet over one or two `axes`, such as {"name": "weight", "adapter": "neon",
        "values": [0, 0.5, 1]}. Returns the sheet, then its cells row by row."""
        wanted = Contact(
            base=base or shared.settings.base_model,
            request=Request(prompt=prompt, **(settings or {})),
            mix=_rows(mix),
            axes=tuple(SheetAxis(**axis) for axis in axes),
        )
        return _files(_done(shared, request, "grid", wanted))

    return generate, grid


def _others(shared: Shared) -> tuple[Callable[..., Any], ...]:
    def train(options: dict[str, Any], request: gr.Request, wait: bool = True) -> dict[str, Any]:
        """Trains as `options` say, fields of TrainConfig (preset, data, name, trigger, steps ...). Returns
        the job: with `wait` at its end, else at once, for `jobs` to look at."""
        given = {"base_model": shared.settings.base_model, **options}
        shared.require_readable(str(given.get("data", "")), shared.owner(request))
        configure({**given, "output": "outputs"})  # what is wrong is told before a job is made of it
        wanted = Training(options={name: value for name, value in given.items() if name != "output"})
        if wait:
            return _facts(_done(shared, request, "train", wanted))
        job = shared.submit(request, "train", wanted)
        return _facts(view(shared, job))

    def jobs(request: gr.Request, number: int = 0, cancel: bool = False) -> list[dict[str, Any]]:
        """Your jobs, the newest first; or the one of a number, which `cancel` ends."""
        owner = shared.owner(request)
        if number and cancel:
            shared.jobs.cancel(number, owner)
        mine = [shared.jobs.get(number, owner)] if number else shared.jobs.of(owner)
        return [_facts(view(shared, job)) for job in mine]

    def library(words: str = "", refresh: bool = False) -> list[dict[str, Any]]:
        """The adapters whose name, trigger, kind or hash holds every word."""
        if refresh:
            shared.library.refresh()
        return [
            {
                "name": entry.name,
                "family": entry.family,
                "kinds": dict(entry.kinds),
                "ranks": list(entry.ranks),
                "trigger": entry.trigger,
                "size": entry.size,
                "autov3": entry.hashes.autov3,
            }
            for entry in found(shared.library, Query(words))
        ]

    return train, jobs, library


def _rows(mix: Mapping[str, float]) -> tuple[MixRow, ...]:
    return tuple(MixRow(name=name, unet=weight) for name, weight in mix.items())


def _done(shared: Shared, request: gr.Request, kind: str, wanted: BaseModel) -> View:
    """The job of `wanted` at its end. Raises DiffloraError with its error if it has failed."""
    *_, job = shared.jobs.follow(shared.submit(request, kind, wanted))
    if job.state != "done":
        raise DiffloraError(job.error or job.note or "cancelled")
    return view(shared, job)


def _files(seen: View) -> list[FileData]:
    return [FileData(path=path) for path in seen.pictures]


def _facts(seen: View) -> dict[str, Any]:
    job = seen.job
    return {
        "job": job.number,
        "kind": job.kind,
        "state": job.state,
        "done": job.done,
        "total": job.total,
        "note": job.note,
        "error": job.error,
        "result": json.loads(job.result),
        "files": list(job.files),
    }


def _told(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint, whose errors reach the client in words; gradio hides what is no gr.Error."""

    @wraps(endpoint)
    def call(*args: Any, **given: Any) -> Any:
        try:
            return endpoint(*args, **given)
        except (DiffloraError, ValidationError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return call
