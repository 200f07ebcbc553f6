"""The tab that draws images with a weighted mix of adapters."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from difflora import SAMPLERS, DiffloraError, Request, read_recipe, token_count
from webui.following import FOLLOWING, QUIET, View, live, notice, problem, returning, view, views
from webui.forms import Form, form
from webui.parts import mix as mixes
from webui.parts import prompt as prompts
from webui.parts.mix import Mix
from webui.restore import restored
from webui.shared import Shared
from webui.tabs.tab import Handed, Page, Tab, reveal
from webui.work.draw import Draw

SIZE = ("width", "height")
PAIRS = (("guidance", "guidance_rescale"), ("clip_skip", "batch"))
NUMBERS = (*SIZE, *PAIRS[0], *PAIRS[1])
HISTORY = 60  # pictures
KIND = "generate"
FIXED, SEED = 7, 4  # widgets of the form before its numbers; which of them is the seed


@dataclass(frozen=True, slots=True)
class Inputs:
    """The widgets of the form, less those of the mix. `again` takes the seed of the picture on show."""

    prompt: Component
    negative: Component
    sampler: Component
    steps: Component
    seed: Component
    count: Component
    compare: Component
    numbers: Form
    again: gr.Button

    @property
    def all(self) -> list[Component]:
        """In the order that `wanted` reads."""
        fixed = [self.prompt, self.negative, self.sampler, self.steps, self.seed, self.count, self.compare]
        return [*fixed, *self.numbers.values()]


@dataclass(frozen=True, slots=True)
class Results:
    """The widgets that show what was drawn.

    `current` is a State with the number of the job on show; `pictures` and `earlier` hold the files of the
    two galleries, since what a browser says of a picture that was clicked is its place and not to be trusted
    with a path; `chosen` is the file whose settings are shown.
    """

    current: gr.State
    pictures: gr.State
    earlier: gr.State
    status: Component
    live: Component
    gallery: gr.Gallery
    infotext: Component
    compared: gr.Accordion
    slider: Component
    history: gr.Gallery
    chosen: gr.State
    back: gr.Button
    drop: gr.File
    cancel: gr.Button

    @property
    def outputs(self) -> list[Any]:
        """What `shown` changes, in its order."""
        return [
            self.current,
            self.status,
            self.live,
            self.gallery,
            self.pictures,
            self.infotext,
            self.chosen,
            self.compared,
            self.slider,
            self.cancel,
        ]


def wanted(base: str, values: Sequence[Any], *, names: Sequence[str], mix: Sequence[Any]) -> Draw:
    """What the form asks for: `values` are those of `Inputs.all`, `names` the fields of its numbers, `mix`
    those of `Mix.inputs`. An empty seed is a new one.

    Raises ConfigError naming every field that cannot be used.
    """
    prompt, negative, sampler, steps, seed, count, compare, *numbers = values
    given = {name: value for name, value in zip(names, numbers, strict=True) if value not in (None, "")}
    request = Request(
        prompt=prompt,
        negative=negative,
        sampler=sampler,
        steps=int(steps),
        seed=seed if seed not in (None, "") else secrets.randbelow(2**32),
        **given,
    )
    return Draw(base=base, request=request, mix=mixes.rows_of(mix), count=int(count), compare=bool(compare))


def _build(shared: Shared, page: Page) -> None:
    base = page.base
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            prompt, negative, counter = _prompts(shared, base)
            with gr.Row():
                button = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
                cancel = gr.Button("Cancel", elem_id="cancel", interactive=False, scale=1)
            mix = mixes.build(shared, base=base, prompt=prompt)
            inputs = _settings(prompt, negative)
        with gr.Column(scale=6, min_width=320):
            results = _results(cancel)
    _connect_drawing(shared, page, inputs, mix, results, button)
    _connect_pictures(shared, base, inputs, mix, results)
    _connect_form(shared, page, inputs, mix)
    prompt.change(
        lambda text, base: _tokens(shared, text, base),
        [prompt, base],
        counter,
        trigger_mode="always_last",
        **QUIET,
    )


def _prompts(shared: Shared, base: gr.Dropdown) -> tuple[gr.Textbox, Component, Component]:
    words = "<lora:name:0.7> adds an adapter, (word:1.2) gives a word more weight. Ctrl+Enter draws."
    prompt = prompts.build(shared, base, lines=3, info=words, elem_id="prompt", autofocus=True)
    counter = gr.HTML('<div class="counter">0 tokens</div>', elem_id="counter")
    negative = gr.Textbox(label="Negative prompt", lines=1, elem_id="negative")
    return prompt, negative, counter


def _settings(prompt: Component, negative: Component) -> Inputs:
    with gr.Accordion("Settings", open=True):
        with gr.Row():
            sampler = gr.Dropdown(list(SAMPLERS), value="DPM++ 2M", label="Sampler", scale=2)
            steps = gr.Slider(1, 100, value=25, step=1, label="Steps", scale=2)
            count = gr.Number(1, minimum=1, maximum=64, precision=0, label="Images", scale=1)
        with gr.Row(equal_height=True):
            seed = gr.Textbox(label="Seed", placeholder="a new one each time", elem_id="seed", scale=3)
            dice = gr.Button("🎲", min_width=40, scale=0, elem_id="dice")
            again = gr.Button("♻", min_width=40, scale=0, elem_id="recycle")
        with gr.Row(equal_height=True, elem_classes="even"):
            numbers = form(Request, SIZE, blank=_default)
            swap = gr.Button("⇄", min_width=40, scale=0, elem_id="swap")
        for names in PAIRS:
            with gr.Row(elem_classes="even"):
                numbers |= form(Request, names, blank=_default)
        compare = gr.Checkbox(False, label="Also draw with the adapters off, to compare", elem_id="compare")
    dice.click(lambda: "", None, seed, api_visibility="private")
    sizes = [numbers["width"], numbers["height"]]
    swap.click(lambda width, height: (height, width), sizes, sizes, api_visibility="private")
    return Inputs(prompt, negative, sampler, steps, seed, count, compare, numbers, again)


def _default(info: FieldInfo) -> str:
    return "the base's own" if info.default is None else str(info.default)


def _results(cancel: gr.Button) -> Results:
    current = gr.State(None)
    status = gr.HTML(elem_id="status")
    drawing = gr.HTML(elem_id="live")
    gallery = gr.Gallery(
        label="Images",
        columns=2,
        object_fit="contain",
        interactive=False,
        height=520,
        elem_id="gallery",
        buttons=["download", "download_all", "fullscreen"],
    )
    infotext = gr.Textbox(
        label="How it was made", interactive=False, lines=2, max_lines=8, elem_id="infotext", buttons=["copy"]
    )
    back = gr.Button("Send settings back to the form", size="sm", elem_id="send-back")
    drop = gr.File(label="Settings out of a PNG", file_types=[".png"], height=130, elem_id="restore")
    compared = gr.Accordion("Without and with the adapters", open=True, visible=False)
    with compared:
        slider = gr.ImageSlider(label="off | on", interactive=False, elem_id="slider", type="filepath")
    with gr.Accordion("Earlier pictures", open=False):
        history = gr.Gallery(
            label="Click one for its settings",
            columns=6,
            interactive=False,
            height=260,
            elem_id="history",
            buttons=["download", "fullscreen"],
        )
    return Results(
        current=current,
        pictures=gr.State([]),
        earlier=gr.State([]),
        status=status,
        live=drawing,
        gallery=gallery,
        infotext=infotext,
        compared=compared,
        slider=slider,
        history=history,
        chosen=gr.State(None),
        back=back,
        drop=drop,
        cancel=cancel,
    )


def shown(found: View, *, select: bool = True) -> list[Any]:
    """Updates for `Results.outputs`. A picture that is selected is scrolled to, by its browser."""
    job = found.job
    pictures = gr.update(visible=found.preview is None)  # what is being drawn stands in its place
    files, infotext, chosen = gr.skip(), gr.skip(), gr.skip()
    compared, slider = gr.skip(), gr.skip()
    if job.state == "done":
        files = list(found.pictures)
        pictures = gr.update(value=files, selected_index=0 if select else None, visible=True)
        chosen = found.pictures[0]
        infotext = _infotext(chosen)
        off = [file for file in found.pictures if file.endswith("-off.png")]
        compared = gr.Accordion(visible=bool(off))
        slider = (off[0], chosen) if off else None
    return [
        job.number,
        found.status,
        live(found),
        pictures,
        files,
        infotext,
        chosen,
        compared,
        slider,
        gr.update(interactive=not job.is_over),
    ]


def refused(error: Exception) -> list[Any]:
    """Updates for `Results.outputs` where there is no job: the error, and everything else as it was."""
    return [gr.skip(), problem(error), "", *[gr.skip()] * 6, gr.update(interactive=False)]


def _connect_drawing(
    shared: Shared, page: Page, inputs: Inputs, mix: Mix, results: Results, button: gr.Button
) -> None:
    count, names = len(inputs.all), list(inputs.numbers)

    def on_draw(request: gr.Request, base: str, *values: Any) -> Iterator[list[Any]]:
        try:
            asked = wanted(base, values[:count], names=names, mix=values[count:])
            job = shared.jobs.submit(shared.owner(request), KIND, asked.model_dump_json())
        except (DiffloraError, ValidationError) as error:
            yield refused(error)
            return
        yield from map(shown, views(shared, job))

    past = _history(shared), None, [results.history, results.earlier]
    asked = [page.base, *inputs.all, *mix.inputs]
    button.click(None, js=reveal("#status"))
    button.click(on_draw, asked, results.outputs, **FOLLOWING).then(*past, **QUIET)
    results.cancel.click(shared.stop, results.current, None, api_visibility="private", queue=False)
    again = returning(shared, KIND, partial(shown, select=False), outputs=len(results.outputs))
    page.blocks.load(again, None, results.outputs, **FOLLOWING)
    page.blocks.load(*past, **QUIET)
    page.tab.select(lambda: mixes.choices(shared), None, mix.picker, **QUIET)


def _history(shared: Shared) -> Any:
    def pictures(request: gr.Request) -> tuple[list[str], list[str]]:
        files: list[str] = []
        for job in shared.jobs.of(shared.owner(request), kind=KIND, limit=HISTORY):
            if job.state == "done":
                files += view(shared, job).pictures
        return files[:HISTORY], files[:HISTORY]

    return pictures


def _connect_pictures(shared: Shared, base: Component, inputs: Inputs, mix: Mix, results: Results) -> None:
    def on_select(files: list[str], event: gr.SelectData) -> tuple[str, str]:
        path = files[int(event.index)]
        return path, _infotext(path)

    def on_restore(path: str | None, base: str) -> list[Any]:
        return _restored(shared, Path(path) if path else None, base, names=list(inputs.numbers))

    for gallery, files in ((results.gallery, results.pictures), (results.history, results.earlier)):
        gallery.select(on_select, files, [results.chosen, results.infotext], api_visibility="private")
    inputs.again.click(_seed_of, results.chosen, inputs.seed, api_visibility="private")
    outputs = [results.status, *inputs.all, *mix.outputs]
    results.back.click(on_restore, [results.chosen, base], outputs, api_visibility="private")
    results.drop.upload(on_restore, [results.drop, base], outputs, api_visibility="private").then(
        lambda: None, None, results.drop, **QUIET
    )


def _restored(shared: Shared, path: Path | None, base: str, *, names: Sequence[str]) -> list[Any]:
    """Updates for the status, the form and the mix after settings were taken from a picture."""
    unchanged = [gr.skip()] * (FIXED + len(names) + len(mixes.shown([], [])))
    if path is None:
        return [problem(DiffloraError("no picture is chosen: click one first.")), *unchanged]
    try:
        found = restored(path, shared.library)
    except DiffloraError as error:
        return [problem(error), *unchanged]
    drawing = Draw(base=base, request=found.request, mix=found.rows)
    wrong, *filled = _filled(shared, drawing, names=names)
    notes = [*found.notes, *wrong]
    return [problem(DiffloraError("\n".join(notes))) if notes else notice("settings restored"), *filled]


def _filled(shared: Shared, drawing: Draw, *, names: Sequence[str]) -> list[Any]:
    """Which adapters of a drawing cannot be used; then updates for `Inputs.all` and `Mix.outputs`."""
    request = drawing.request
    known, rows, wrong = mixes.fitting(shared, drawing.mix, drawing.base)
    given = request.model_dump(include=set(names), exclude_defaults=True, exclude_none=True)
    numbers = [f"{given[name]:g}" if name in given else "" for name in names]
    fixed = [request.prompt, request.negative, request.sampler, request.steps, str(request.seed)]
    return [wrong, *fixed, drawing.count, drawing.compare, *numbers, *mixes.shown(known, rows)]


def _connect_form(shared: Shared, page: Page, inputs: Inputs, mix: Mix) -> None:
    """The form is as at the visitor's last drawing, and takes what other tabs hand to it."""
    names, mixed = list(inputs.numbers), len(mixes.shown([], []))

    def on_load(request: gr.Request) -> list[Any]:
        for job in shared.jobs.of(shared.owner(request), kind=KIND, limit=1):
            drawing = Draw.model_validate_json(job.request)
            try:
                shared.outline(drawing.base)
            except DiffloraError:  # it has gone since
                break
            _, *filled = _filled(shared, drawing, names=names)
            filled[SEED] = gr.skip()  # of a new picture, unless asked otherwise
            return [drawing.base, *filled]
        return [gr.skip()] * (1 + FIXED + len(names) + mixed)

    def on_handed(handed: Handed | None, base: str, *values: Any) -> list[Any]:
        if handed is None or handed.drawing is None:
            name = "" if handed is None else handed.adapter
            told, *rows = mixes.added(shared, name, base, values)
            return [told, *[gr.skip()] * (FIXED + len(names)), *rows]
        wrong, *filled = _filled(shared, handed.drawing, names=names)
        return [problem(DiffloraError("\n".join(wrong))) if wrong else "", *filled]

    page.blocks.load(on_load, None, [page.base, *inputs.all, *mix.outputs], **QUIET)
    page.handed.change(
        on_handed,
        [page.handed, page.base, *mix.inputs],
        [mix.message, *inputs.all, *mix.outputs],
        **QUIET,
    )


def _seed_of(path: str | None) -> str:
    return "" if path is None else str(read_recipe(path).seed)


def _infotext(path: str) -> str:
    try:
        with Image.open(path) as image:
            return str(image.info.get("parameters", ""))
    except OSError:
        return ""


def _tokens(shared: Shared, text: str, base: str) -> str:
    try:
        count = token_count(shared.outline(base), text)
    except DiffloraError:
        return '<div class="counter"></div>'
    return f'<div class="counter">{count} tokens</div>'


GENERATE = Tab("Generate", _build)
