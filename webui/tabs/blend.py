"""The tab that blends: a sheet over weights, how the adapters meet, and the mix as one adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from pydantic import ValidationError

from difflora import DiffloraError
from difflora.errors import ConfigError
from webui.blending import AT_ONCE, START, Sheet, contact_of, request_of, sheet_drawn, sheet_of
from webui.following import FOLLOWING, QUIET, View, live, problem, returning, views
from webui.parts import keep
from webui.parts import mix as mixes
from webui.parts import prompt as prompts
from webui.parts.mix import Known, Mix
from webui.shared import Shared
from webui.tabs.tab import Handed, Page, Tab, at_first_sight, reveal
from webui.work.contact import SHEET, Contact, cell_name
from webui.work.draw import Draw

KIND = "grid"


@dataclass(frozen=True, slots=True)
class Inputs:
    """The form, less the mix."""

    prompt: Component
    across: Component
    columns: Component
    down: Component
    rows: Component
    seed: Component
    steps: Component
    guidance: Component
    at_once: Component

    @property
    def all(self) -> list[Component]:
        """In the order that the sheet is asked for."""
        axes = [self.across, self.columns, self.down, self.rows]
        return [self.prompt, *axes, self.seed, self.steps, self.guidance, self.at_once]


@dataclass(frozen=True, slots=True)
class Results:
    """The sheet: `current` is a State with the number of its job, `sheet` one with what is in its cells."""

    current: gr.State
    sheet: gr.State
    status: Component
    drawing: Component
    cells: gr.Gallery
    labelled: gr.Accordion
    whole: Component
    use: gr.Button
    cancel: gr.Button

    @property
    def outputs(self) -> list[Any]:
        """What `_shown` changes, in its order."""
        shown = [self.status, self.drawing, self.cells, self.labelled, self.whole, self.cancel]
        return [self.current, self.sheet, *shown]


def _build(shared: Shared, page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            prompt = prompts.build(shared, page.base, lines=2, elem_id="blend-text")
            mix = mixes.build(shared, base=page.base, prompt=prompt, prefix="blend-")
            inputs = _inputs(prompt)
            with gr.Row():
                draw = gr.Button("Draw the sheet", variant="primary", elem_id="blend", scale=3)
                cancel = gr.Button("Cancel", interactive=False, scale=1, elem_id="blend-cancel")
        with gr.Column(scale=6, min_width=320):
            results = _results(cancel)
            taken = gr.State(None)
            keep.build(shared, page.base, mix, taken)
    _connect_axes(mix, inputs.across, inputs.down)
    _connect(shared, page, inputs, mix, results, draw)
    _connect_cells(shared, page, inputs, mix, results, taken)


def _inputs(prompt: Component) -> Inputs:
    with gr.Row():
        across = gr.Dropdown([], label="Columns: weight of", elem_id="across")
        columns = gr.Textbox(START, label="Weights", info="0, 0.5, 1 or 0 - 1 [5]", elem_id="columns")
    with gr.Row():
        down = gr.Dropdown([], label="Rows: weight of", elem_id="down")
        rows = gr.Textbox(START, label="Weights", info="0, 0.5, 1 or 0 - 1 [5]", elem_id="rows")
    with gr.Row():
        seed = gr.Textbox("1", label="Seed")
        steps = gr.Slider(1, 100, value=20, step=1, label="Steps", elem_id="blend-steps")
        guidance = gr.Textbox("", label="Guidance", placeholder="the base's own")
        at_once = gr.Number(
            AT_ONCE, minimum=1, maximum=64, precision=0, label="Cells at once", elem_id="at-once"
        )
    return Inputs(prompt, across, columns, down, rows, seed, steps, guidance, at_once)


def _results(cancel: gr.Button) -> Results:
    status, drawing = gr.HTML(elem_id="blend-status"), gr.HTML()
    cells = gr.Gallery(
        label="Click a cell to take its weights",
        columns=5,
        height="auto",
        object_fit="contain",
        interactive=False,
        allow_preview=False,
        elem_id="cells",
        buttons=[],
    )
    use = gr.Button("Take the mix to Generate", size="sm", elem_id="blend-use")
    labelled = gr.Accordion("The sheet with its labels", open=False, visible=False)
    with labelled:
        whole = gr.Image(show_label=False, interactive=False, type="filepath", elem_id="sheet")
    return Results(gr.State(None), gr.State(None), status, drawing, cells, labelled, whole, use, cancel)


def _connect(shared: Shared, page: Page, inputs: Inputs, mix: Mix, results: Results, draw: gr.Button) -> None:
    count = len(inputs.all)

    def on_draw(request: gr.Request, base: str, *values: Any) -> Iterator[list[Any]]:
        prompt, across, columns, down, rows, seed, steps, guidance, at_once = values[:count]
        try:
            if not prompt.strip():
                raise ConfigError("there is no prompt: write what the cells are to show.")
            sheet = sheet_of(mixes.rows_of(values[count:]), across, columns, down, rows)
            wanted = {"seed": seed, "steps": int(steps), "guidance": guidance, "at_once": int(at_once or 1)}
            asked = contact_of(base, sheet, prompt, **wanted)
            job = shared.submit(request, KIND, asked)
        except (DiffloraError, ValidationError) as error:
            yield [gr.skip(), gr.skip(), problem(error), *[gr.skip()] * 5]
            return
        yield from map(_shown, views(shared, job))

    def on_load(request: gr.Request) -> list[Any]:
        """The form of the newest sheet, and its mix if all of it can be used still."""
        for job in shared.jobs.of(shared.owner(request), kind=KIND, limit=1):
            drawn = Contact.model_validate_json(job.request)
            if (sheet := sheet_drawn(drawn)) is not None:
                axes = [", ".join(f"{weight:g}" for weight in axis) for axis in (sheet.columns, sheet.rows)]
                asked = drawn.request
                cells = len(sheet.columns) * len(sheet.rows)
                at_once = asked.batch if asked.batch < cells else AT_ONCE
                guidance = "" if asked.guidance is None else f"{asked.guidance:g}"
                form = [asked.prompt, *axes, str(asked.seed), asked.steps, guidance, at_once]
                in_order = sorted(
                    sheet.mix, key=lambda row: (row.name != sheet.across, row.name != sheet.down)
                )
                known, rows, wrong = mixes.fitting(shared, in_order, drawn.base)
                return [*form, *(mixes.shown([], []) if wrong else mixes.shown(known, rows))]
        return [*[gr.skip()] * 7, *mixes.shown([], [])]

    draw.click(None, js=reveal("#blend-status"))
    asked = [page.base, *inputs.all, *mix.inputs]
    draw.click(on_draw, asked, results.outputs, trigger_mode="multiple", **FOLLOWING)
    results.cancel.click(shared.stop, results.current, None, api_visibility="private", queue=False)
    again = returning(shared, KIND, _shown, outputs=len(results.outputs))
    page.blocks.load(again, None, results.outputs, **FOLLOWING)
    form = [one for one in inputs.all if one not in (inputs.across, inputs.down)]
    at_first_sight(page, on_load, [*form, *mix.outputs])
    page.tab.select(lambda: mixes.choices(shared), None, mix.picker, **QUIET)


def _connect_cells(
    shared: Shared, page: Page, inputs: Inputs, mix: Mix, results: Results, taken: gr.State
) -> None:
    """A cell gives its weights to the mix, and the mix goes to Generate, where it is drawn as here."""
    count = len(inputs.all)

    def on_cell(
        request: gr.Request,
        number: int | None,
        found: Sheet | None,
        there: Sequence[Known] | None,
        base: str,
        event: gr.SelectData,
    ) -> list[Any]:
        unchanged = [gr.skip()] * (1 + len(mix.outputs))
        if found is None or number is None:
            return [gr.skip(), *unchanged]
        cell = int(event.index)
        known, rows, wrong = mixes.fitting(shared, found.weights(cell), base, there=there)
        if wrong:  # the sheet is older than the base or the library
            return [problem(DiffloraError("\n".join(wrong))), *unchanged]
        job = shared.jobs.get(number, shared.owner(request))
        picture = shared.jobs.place(job) / cell_name(*divmod(cell, len(found.columns)))
        return ["", keep.Taken(tuple(rows), picture), *mixes.shown(known, rows)]

    def on_use(base: str, *values: Any) -> list[Any]:
        prompt, *_, seed, steps, guidance, _ = values[:count]
        try:
            request = request_of(prompt, seed=seed, steps=int(steps), guidance=guidance)
            drawing = Draw(base=base, request=request, mix=mixes.rows_of(values[count:]))
        except (DiffloraError, ValidationError) as error:
            return [problem(error), gr.skip(), gr.skip()]
        return ["", Handed(drawing=drawing), gr.update(selected="generate")]

    cell = [results.current, results.sheet, mix.known, page.base]
    results.cells.select(on_cell, cell, [mix.message, taken, *mix.outputs], api_visibility="private")
    asked = [page.base, *inputs.all, *mix.inputs]
    results.use.click(on_use, asked, [mix.message, page.handed, page.tabs], **QUIET)


def _shown(found: View) -> list[Any]:
    """Updates for `Results.outputs` after the sheet's job has changed; none for a sheet over something else,
    which only a script can ask for."""
    job = found.job
    sheet = sheet_drawn(Contact.model_validate_json(job.request))
    if sheet is None:
        return [gr.skip()] * 8
    running = gr.update(interactive=not job.is_over)
    if job.state != "done":
        cells = gr.update(visible=found.preview is None)  # what is being drawn stands in their place
        return [job.number, sheet, found.status, live(found), cells, gr.skip(), gr.skip(), running]
    whole = next(file for file in found.pictures if file.endswith(SHEET))
    cells = [file for file in found.pictures if file != whole]
    captions = [_caption(sheet, number) for number in range(len(cells))]
    axes = ", ".join(f"{arrow} {name}" for arrow, name in _axes(sheet))
    pictures = gr.update(
        value=list(zip(cells, captions, strict=True)),
        columns=len(sheet.columns),
        label=f"{axes}: click a cell to take its weights",
        selected_index=None,
        visible=True,
    )
    return [job.number, sheet, found.status, "", pictures, gr.update(visible=True), whole, running]


def _caption(sheet: Sheet, cell: int) -> str:
    """The weights of a cell along its axes."""
    weights = {row.name: row.unet for row in sheet.weights(cell)}
    return "  ".join(f"{arrow} {weights[name]:.3g}" for arrow, name in _axes(sheet))


def _axes(sheet: Sheet) -> list[tuple[str, str]]:
    """Where each of the adapters that change grows stronger, as an arrow, and its name."""
    return [(arrow, name) for arrow, name in (("→", sheet.across), ("↓", sheet.down)) if name]


def _connect_axes(mix: Mix, across: Component, down: Component) -> None:
    """The axes can be the adapters of the mix."""

    def choices(known: Sequence[Known]) -> tuple[Any, Any]:
        names = [one.name for one in known]
        first, second = ([*names, None, None])[:2]
        return gr.update(choices=names, value=first), gr.update(choices=names, value=second)

    mix.known.change(choices, mix.known, [across, down], api_visibility="private")


BLEND = Tab("Blend", _build)
