"""The tab that trains an adapter from a folder of images: look at the folder, start, watch, use."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
import pandas as pd
from gradio.components import Component
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from difflora import PRESETS, DiffloraError, TrainConfig, configure
from webui.following import FOLLOWING, View, problem, returning, views
from webui.forms import Form, filled, form, given
from webui.jobs import Job
from webui.parts import images
from webui.shared import Shared
from webui.tabs.tab import Handed, Page, Tab, at_first_sight, reveal
from webui.work.training import COURSE, Training, step_of

KIND = "train"
MAIN = ("trigger", "steps", "rank", "learning_rate", "batch_size", "preview_every", "preview_prompts")
OWN = ("preset", "base_model", "data", "name", "output", "overwrite", "device", "cache_folder", "vae")
ADVANCED = tuple(name for name in TrainConfig.model_fields if name not in (*MAIN, *OWN))
PREVIEWS = 4  # in all, where the form does not say
MANY = 10**9


@dataclass(frozen=True, slots=True)
class Inputs:
    """The widgets that a training is made from."""

    data: Component
    preset: Component
    name: Component
    overwrite: Component
    options: Form

    @property
    def all(self) -> list[Component]:
        """In the order that `wanted` reads."""
        return [self.data, self.preset, self.name, self.overwrite, *self.options.values()]


@dataclass(frozen=True, slots=True)
class Results:
    """The widgets that show a training; `current` is a State with the number of its job."""

    current: gr.State
    status: Component
    plot: Component
    previews: Component
    stop: gr.Button
    use: gr.Button

    @property
    def outputs(self) -> list[Any]:
        """What `shown` changes, in its order."""
        return [self.current, self.status, self.plot, self.previews, self.stop, self.use]


def wanted(base: str, values: Sequence[Any], names: Sequence[str]) -> Training:
    """What the form asks for. Raises ConfigError naming every field that cannot be used."""
    data, preset, name, overwrite, *rest = values
    options = given(TrainConfig, names, rest)
    fixed = {"preset": preset, "base_model": base, "data": data, "name": name, "overwrite": bool(overwrite)}
    config = configure({**fixed, **options, "output": "outputs"})
    chosen = config.model_dump(mode="json", exclude={"output"}, exclude_unset=True)
    # Without a number of steps the only preview is that of the end.
    previews = config.preview_every or max(1, (config.steps or MANY) // PREVIEWS)
    return Training(options={**chosen, "preview_every": previews})


def _build(shared: Shared, page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            data, upload, check = images.folder(shared)
            inputs = _inputs(data)
            with gr.Row():
                start = gr.Button("Start or resume", variant="primary", elem_id="train", scale=3)
                stop = gr.Button("Stop and save", elem_id="stop", interactive=False, scale=2)
        with gr.Column(scale=6, min_width=320):
            trigger = inputs.options["trigger"]
            images.build(shared, page.base, data=data, trigger=trigger, upload=upload, check=check)
            results = _results(stop)
    _connect(shared, page, inputs, results, start)


def _inputs(data: Component) -> Inputs:
    preset = gr.Radio(
        list(PRESETS),
        value=next(iter(PRESETS)),
        label="What is learned",
        info="Sets every option that is left empty.",
    )
    name = gr.Textbox(
        "my-style", label="Name of the adapter", info="The same name resumes.", elem_id="train-name"
    )
    with gr.Row(elem_id="train-options", elem_classes="even"):
        options = form(TrainConfig, MAIN, blank=_by_the_preset)
        previews = options["preview_every"]
        assert isinstance(previews, gr.Textbox), "a number has a text box"
        previews.placeholder, previews.info = f"{PREVIEWS} in all", "Optimizer steps between previews."
    with gr.Accordion("Advanced", open=False), gr.Row(elem_classes="even"):
        options = {**options, **form(TrainConfig, ADVANCED, blank=_by_the_preset)}
    overwrite = gr.Checkbox(
        False, label="Train again if it is finished", info="Replaces the adapter of that name."
    )
    return Inputs(data, preset, name, overwrite, options)


def _by_the_preset(info: FieldInfo) -> str:
    return "by the preset"


def _results(stop: gr.Button) -> Results:
    status = gr.HTML(elem_id="train-status")
    plot = gr.LinePlot(x="step", y="loss", height=220, visible=False, elem_id="loss")
    previews = gr.Gallery(
        label="Previews: one row of prompts a checkpoint",
        elem_id="previews",
        buttons=["download", "fullscreen"],
        columns=4,
        object_fit="contain",
        interactive=False,
        height="auto",
        visible=False,
    )
    use = gr.Button("Draw with it", variant="primary", visible=False, elem_id="use")
    return Results(gr.State(None), status, plot, previews, stop, use)


def shown(shared: Shared, found: View) -> list[Any]:
    """Updates for `Results.outputs`."""
    job = found.job
    course = _course(shared, job)
    losses = pd.DataFrame(course.get("loss", []), columns=["step", "loss"])
    name = str(course.get("adapter", ""))
    notes = "".join(f'<div class="note">{html.escape(note)}</div>' for note in course.get("notes", []))
    return [
        job.number,
        found.status + notes,
        gr.update(value=losses, visible=len(losses) > 1),
        _previews(found.pictures),
        gr.update(interactive=not job.is_over),
        gr.update(visible=bool(name), value=f"Draw with {name}"),
    ]


def _previews(pictures: Sequence[str]) -> Any:
    """The previews as a grid: a row for each checkpoint, a column for each prompt."""
    steps = [step_of(picture) for picture in pictures]
    captioned = [(picture, f"step {step}") for picture, step in zip(pictures, steps, strict=True)]
    prompts = max(map(steps.count, steps), default=1)
    return gr.update(value=captioned, columns=prompts, visible=bool(pictures))


def _course(shared: Shared, job: Job) -> dict[str, Any]:
    """What the job has said of its course so far."""
    if job.state == "done":
        return json.loads(job.result)
    try:
        return json.loads((shared.jobs.place(job) / COURSE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _connect(shared: Shared, page: Page, inputs: Inputs, results: Results, start: gr.Button) -> None:
    names = list(inputs.options)
    show = partial(shown, shared)

    def on_start(request: gr.Request, base: str, *values: Any) -> Iterator[list[Any]]:
        try:
            shared.require_readable(values[0], shared.owner(request))
            asked = wanted(base, values, names)
            job = shared.submit(request, KIND, asked)
        except (DiffloraError, ValidationError) as error:
            yield [gr.skip(), problem(error), *[gr.skip()] * 5]
            return
        ticked = False  # what is begun anew is not thrown away by the next click
        for found in views(shared, job):
            yield [*show(found), ticked]
            ticked = gr.skip()

    def on_use(request: gr.Request, number: int | None) -> tuple[Any, Any]:
        job = shared.jobs.get(number or 0, shared.owner(request))
        shared.library.refresh()
        return Handed(json.loads(job.result)["adapter"]), gr.update(selected="generate")

    def on_load(request: gr.Request) -> list[Any]:
        """The form of the newest training, which the same name resumes."""
        for job in shared.jobs.of(shared.owner(request), kind=KIND, limit=1):
            options = Training.model_validate_json(job.request).options
            fixed = [options.get("data", ""), options.get("preset"), options.get("name", ""), False]
            return [*fixed, *filled(TrainConfig, names, options)]
        return [gr.skip()] * len(inputs.all)

    at_first_sight(page, on_load, inputs.all)
    start.click(None, js=reveal("#train-status"))
    outputs = [*results.outputs, inputs.overwrite]
    start.click(on_start, [page.base, *inputs.all], outputs, trigger_mode="multiple", **FOLLOWING)
    results.stop.click(shared.stop, results.current, None, api_visibility="private", queue=False)
    results.use.click(on_use, results.current, [page.handed, page.tabs], api_visibility="private")
    again = returning(shared, KIND, show, outputs=len(results.outputs))
    page.blocks.load(again, None, results.outputs, **FOLLOWING)


TRAIN = Tab("Train", _build)
