"""The tab that trains an adapter from a folder of images: look at the folder, start, watch, use."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from gradio.components import Component
from PIL import Image
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from difflora import PRESETS, DiffloraError, Survey, TrainConfig, configure, survey
from webui.following import FOLLOWING, View, notice, problem, returning, views
from webui.forms import Form, form
from webui.jobs import Job
from webui.shared import Shared
from webui.tabs.tab import Handed, Page, Tab, reveal
from webui.uploads import PICTURES, taken, write_caption
from webui.work.training import COURSE, Training, step_of

KIND = "train"
MAIN = ("trigger", "steps", "rank", "learning_rate", "batch_size", "preview_every")
OWN = ("preset", "base_model", "data", "name", "output", "overwrite", "device", "cache_folder", "vae")
ADVANCED = tuple(
    name
    for name, field in TrainConfig.model_fields.items()
    if name not in (*MAIN, *OWN) and "tuple" not in str(field.annotation)
)
PREVIEWS = 4  # in all, where the form does not say
MANY = 10**9
THUMBNAIL = 192
SHOWN_IMAGES = 200


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
    options = {key: value for key, value in zip(names, rest, strict=True) if value not in (None, "")}
    fixed = {"preset": preset, "base_model": base, "data": data, "name": name, "overwrite": bool(overwrite)}
    config = configure({**fixed, **options, "output": "outputs"})
    given = config.model_dump(mode="json", exclude={"output"}, exclude_unset=True)
    # Without a number of steps the only preview is that of the end.
    previews = config.preview_every or max(1, (config.steps or MANY) // PREVIEWS)
    return Training(options={**given, "preview_every": previews})


def _build(shared: Shared, page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            data, upload, check = _folder(shared)
            inputs = _inputs(data)
            with gr.Row():
                start = gr.Button("Start or resume", variant="primary", elem_id="train", scale=3)
                stop = gr.Button("Stop and save", elem_id="stop", interactive=False, scale=2)
        with gr.Column(scale=6, min_width=320):
            _surveyed(shared, page, inputs, upload, check)
            results = _results(stop)
    _connect(shared, page, inputs, results, start)


def _folder(shared: Shared) -> tuple[Component, gr.UploadButton, gr.Button]:
    data = gr.Textbox(
        shared.settings.data,
        label="Folder of images on this computer",
        info="With a caption in a .txt beside each image.",
        elem_id="data",
    )
    with gr.Row(equal_height=True):
        upload = gr.UploadButton(
            "Upload images and captions", file_count="multiple", file_types=[*PICTURES, ".txt"], size="sm"
        )
        check = gr.Button("Check the images", size="sm", elem_id="check")
    return data, upload, check


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


def _surveyed(shared: Shared, page: Page, inputs: Inputs, upload: gr.UploadButton, check: gr.Button) -> None:
    """The look at the folder: what is in it, what is wrong, and captions to be changed in place."""
    report = gr.HTML(elem_id="survey")
    images = gr.Gallery(
        label="Images", columns=6, height=240, interactive=False, visible=False, elem_id="images", buttons=[]
    )
    table = gr.Dataframe(
        headers=["image", "caption"],
        datatype=["str", "str"],
        interactive=True,
        visible=False,
        wrap=True,
        column_widths=["25%", "75%"],
        max_height=260,
        label="Captions: change one, then save",
        elem_id="captions",
    )
    save = gr.Button("Save the captions", size="sm", visible=False, elem_id="save-captions")

    def look(data: str, trigger: str, base: str) -> list[Any]:
        try:
            resolution = shared.outline(base).facts.resolution
            values = {"data": data, "trigger": trigger, "base_model": base, "name": "x", "output": "x"}
            found = survey(configure({**values, "steps": 1}), resolution=resolution)
        except DiffloraError as error:
            return [problem(error), *[gr.update(visible=False)] * 3]
        rows = [[item.name, item.caption] for item in found.items]
        return [
            _told(found),
            gr.update(value=_thumbnails(shared, found), visible=bool(rows)),
            gr.update(value=rows, visible=bool(rows)),
            gr.update(visible=bool(rows)),
        ]

    def on_upload(request: gr.Request, files: list[str] | None) -> tuple[Any, str]:
        try:
            owner = hashlib.sha256(shared.owner(request).encode()).hexdigest()[:12]
            return str(taken(files or [], shared.settings.uploads / owner)), ""
        except DiffloraError as error:
            return gr.skip(), problem(error)

    def on_save(data: str, rows: pd.DataFrame) -> str:
        try:
            return _save_captions(Path(data), dict(zip(rows["image"], rows["caption"], strict=True)))
        except DiffloraError as error:
            return problem(error)

    seen = [report, images, table, save]
    looked = [inputs.data, inputs.options["trigger"], page.base]
    check.click(look, looked, seen, api_visibility="private")
    upload.upload(on_upload, upload, [inputs.data, report], api_visibility="private").then(
        look, looked, seen, api_visibility="private"
    )
    save.click(on_save, [inputs.data, table], report, api_visibility="private")


def _save_captions(folder: Path, captions: Mapping[str, str]) -> str:
    """Writes the captions that differ; names that are not in the folder are none of its images."""
    there = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES and not path.is_symlink()
    }
    changed = 0
    for name, caption in captions.items():
        path = there.get(str(name))
        beside = None if path is None else path.with_suffix(".txt")
        if (
            path is not None
            and beside is not None
            and not (
                beside.exists() and " ".join(beside.read_text(encoding="utf-8-sig").split()) == str(caption)
            )
        ):
            write_caption(path, str(caption))
            changed += 1
    return notice(f"{changed} captions written")


def _told(found: Survey) -> str:
    """A survey as HTML; names of files are text in it."""
    lines = []
    if found.items:
        buckets = ", ".join(f"{count} of {w}×{h}" for (w, h), count in found.buckets.items())
        lines.append(f"<b>{len(found.items)} images</b> in buckets: {buckets}.")
    lines += [f"The same picture: {html.escape(', '.join(names))}." for names in found.duplicates]
    if found.blown_up:
        worst = max(found.blown_up.values())
        lines.append(
            f"{len(found.blown_up)} are enlarged, up to {worst:.1f} times: larger ones learn better."
        )
    if found.ignored:
        lines.append(f"{len(found.ignored)} other files are not used.")
    wrong = notice(html.escape(found.refusal), is_error=True) if found.refusal else ""
    return notice("".join(f"<div>{line}</div>" for line in lines)) + wrong


def _thumbnails(shared: Shared, found: Survey) -> list[tuple[str, str]]:
    """Small copies that the page may serve, each with its caption."""
    folder = shared.private("thumbnails")
    pictures = []
    for item in found.items[:SHOWN_IMAGES]:
        target = folder / f"{item.sha256[:24]}.jpg"
        if not target.exists():
            with Image.open(item.path) as image:
                small = image.convert("RGB")
                small.thumbnail((THUMBNAIL, THUMBNAIL))
                small.save(target, quality=88)
        pictures.append((str(target), item.caption))
    return pictures


def shown(shared: Shared, found: View) -> list[Any]:
    """Updates for `Results.outputs`."""
    job = found.job
    course = _course(shared, job)
    losses = pd.DataFrame(course.get("loss", []), columns=["step", "loss"])
    name = str(course.get("adapter", ""))
    return [
        job.number,
        found.status,
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
            asked = wanted(base, values, names)
            job = shared.jobs.submit(shared.owner(request), KIND, asked.model_dump_json())
        except (DiffloraError, ValidationError) as error:
            yield [gr.skip(), problem(error), *[gr.skip()] * 4]
            return
        yield from map(show, views(shared, job))

    def on_use(request: gr.Request, number: int | None) -> tuple[Any, Any]:
        job = shared.jobs.get(number or 0, shared.owner(request))
        shared.library.refresh()
        return Handed(json.loads(job.result)["adapter"]), gr.update(selected="generate")

    start.click(None, js=reveal("#train-status"))
    start.click(on_start, [page.base, *inputs.all], results.outputs, **FOLLOWING)
    results.stop.click(shared.stop, results.current, None, api_visibility="private", queue=False)
    results.use.click(on_use, results.current, [page.handed, page.tabs], api_visibility="private")
    again = returning(shared, KIND, show, outputs=len(results.outputs))
    page.blocks.load(again, None, results.outputs, **FOLLOWING)


TRAIN = Tab("Train", _build)
