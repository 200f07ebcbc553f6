"""The tab that draws images with a weighted mix of adapters."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image
from pydantic import ValidationError

from difflora import DiffloraError, read_recipe
from webui.following import FOLLOWING, QUIET, View, live, notice, problem, returning, view, views
from webui.parts import mix as mixes
from webui.parts import request as form
from webui.parts.mix import Mix
from webui.parts.request import Inputs
from webui.restore import restored
from webui.shared import Shared
from webui.tabs.tab import Handed, Page, Tab, reveal
from webui.work.draw import Draw

HISTORY = 60  # pictures
KIND = "generate"


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


def _build(shared: Shared, page: Page) -> None:
    base = page.base
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            prompt, negative = form.prompts(shared, base)
            with gr.Row():
                button = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
                cancel = gr.Button("Cancel", elem_id="cancel", interactive=False, scale=1)
            mix = mixes.build(shared, base=base, prompt=prompt)
            inputs = form.settings(prompt, negative)
        with gr.Column(scale=6, min_width=320):
            results = _results(cancel)
    _connect_drawing(shared, page, inputs, mix, results, button)
    _connect_pictures(shared, base, inputs, mix, results)
    _connect_form(shared, page, inputs, mix)


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
    if job.state == "done" and found.pictures:
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
    count = len(inputs.all)

    def on_draw(request: gr.Request, base: str, *values: Any) -> Iterator[list[Any]]:
        try:
            asked = form.wanted(base, values[:count], mix=values[count:])
            job = shared.submit(request, KIND, asked)
        except (DiffloraError, ValidationError) as error:
            yield refused(error)
            return
        yield from map(shown, views(shared, job))

    past = _history(shared), None, [results.history, results.earlier]
    asked = [page.base, *inputs.all, *mix.inputs]
    button.click(None, js=reveal("#status"))
    button.click(on_draw, asked, results.outputs, trigger_mode="multiple", **FOLLOWING).then(*past, **QUIET)
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
        return _restored(shared, Path(path) if path else None, base)

    for gallery, files in ((results.gallery, results.pictures), (results.history, results.earlier)):
        gallery.select(on_select, files, [results.chosen, results.infotext], api_visibility="private")
    inputs.again.click(_seed_of, results.chosen, inputs.seed, api_visibility="private")
    outputs = [results.status, *inputs.all, *mix.outputs]
    results.back.click(on_restore, [results.chosen, base], outputs, api_visibility="private")
    results.drop.upload(on_restore, [results.drop, base], outputs, api_visibility="private").then(
        lambda: None, None, results.drop, **QUIET
    )


def _restored(shared: Shared, path: Path | None, base: str) -> list[Any]:
    """Updates for the status, the form and the mix after settings were taken from a picture."""
    unchanged = [gr.skip()] * (form.WIDGETS + len(mixes.shown([], [])))
    if path is None:
        return [problem(DiffloraError("no picture is chosen: click one first.")), *unchanged]
    try:
        found = restored(path, shared.library)
        name = shared.outline(base).facts.name
    except DiffloraError as error:
        return [problem(error), *unchanged]
    drawing = Draw(base=base, request=found.request, mix=found.rows)
    wrong, *filled = form.filled(shared, drawing)
    notes = [*found.notes, *wrong]
    if found.base not in ("", name):
        notes.append(f"it was drawn with the base {found.base}, and not with {name}")
    told = html.escape(
        "\n".join(["settings restored, but not all:", *notes] if notes else ["settings restored"])
    )
    return [notice(told, is_error=bool(notes)), *filled]


def _connect_form(shared: Shared, page: Page, inputs: Inputs, mix: Mix) -> None:
    """The form is as at the visitor's last drawing, and takes what other tabs hand to it."""

    def on_load(request: gr.Request) -> list[Any]:
        for job in shared.jobs.of(shared.owner(request), kind=KIND, limit=1):
            drawing = Draw.model_validate_json(job.request)
            try:
                shared.outline(drawing.base)
            except DiffloraError:  # it has gone since
                break
            _, *filled = form.filled(shared, drawing)
            filled[form.SEED] = gr.skip()  # of a new picture, unless asked otherwise
            return [drawing.base, *filled]
        return [*[gr.skip()] * (1 + form.WIDGETS), *mixes.shown([], [])]

    def on_handed(handed: Handed | None, base: str, *values: Any) -> list[Any]:
        if handed is None or handed.drawing is None:
            name = "" if handed is None else handed.adapter
            told, *rows = mixes.added(shared, name, base, values)
            return [told, *[gr.skip()] * form.WIDGETS, *rows]
        wrong, *filled = form.filled(shared, handed.drawing)
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


GENERATE = Tab("Generate", _build)
