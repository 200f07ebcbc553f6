"""The mix: rows of adapters with a weight each. Only what fits the base can be added."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from difflora import DiffloraError, Library, Stack, fits, interference
from difflora.errors import NeedsBase
from webui.following import QUIET, notice, problem
from webui.shared import Shared
from webui.work.desk import LIMIT, MixRow

MAX_ROWS = 8
VALUES = 4  # widgets of a row that hold a value: on, weight, own text weight, text weight


@dataclass(frozen=True, slots=True)
class Known:
    """What a row tells of its adapter."""

    name: str
    facts: str
    words: str


@dataclass(frozen=True, slots=True)
class RowWidgets:
    """The widgets of one row."""

    group: gr.Group
    on: Component
    weight: Component
    has_text: gr.Checkbox
    text: Component
    words: gr.Button
    remove: gr.Button

    @property
    def values(self) -> list[Component]:
        """Those that hold a value, in the order of `VALUES`."""
        return [self.on, self.weight, self.has_text, self.text]

    @property
    def all(self) -> list[Any]:
        """Everything that changes with the row's adapter."""
        return [self.group, *self.values, self.words]


@dataclass(frozen=True, slots=True)
class Mix:
    """The widgets of a mix. `known` is a State with a Known for every row that is in use."""

    known: gr.State
    picker: Component
    message: Component
    rows: tuple[RowWidgets, ...]

    @property
    def inputs(self) -> list[Component]:
        """What `rows_of` reads, in its order."""
        return [self.known, *(widget for row in self.rows for widget in row.values)]

    @property
    def outputs(self) -> list[Any]:
        """What `shown` changes, in its order."""
        return [self.known, *(widget for row in self.rows for widget in row.all)]


def rows_of(values: Sequence[Any]) -> tuple[MixRow, ...]:
    """The mix that the widgets of `Mix.inputs` hold.

    Raises DiffloraError if the server knows nothing of it any more: it forgets a page that was away for an
    hour, whose rows would else be drawn without.
    """
    if values[0] is None:
        raise DiffloraError(
            "the mix is not known: the page has just been opened, or was away for an hour. Try again in a "
            "moment, or open it again: its last form comes back."
        )
    return _rows(values)


def _rows(values: Sequence[Any]) -> tuple[MixRow, ...]:
    known, rest = values[0] or [], values[1:]
    rows = []
    for place, one in enumerate(known):
        on, weight, has_text, text = rest[place * VALUES : (place + 1) * VALUES]
        rows.append(MixRow(name=one.name, unet=weight, text=text if has_text else None, on=on))
    return tuple(rows)


def shown(known: Sequence[Known], rows: Sequence[MixRow]) -> list[Any]:
    """Updates for `Mix.outputs`: the rows with what is known of each, and no other row."""
    updates: list[Any] = [list(known)]
    for place in range(MAX_ROWS):
        if place >= len(rows):
            updates += [gr.Group(visible=False), *[gr.skip()] * (VALUES + 1)]
            continue
        row, one = rows[place], known[place]
        updates += [
            gr.Group(visible=True),
            gr.Checkbox(value=row.on),
            gr.Slider(value=row.unet, label=row.name, info=one.facts),
            gr.Checkbox(value=row.text is not None),
            gr.Slider(value=row.unet if row.text is None else row.text, visible=row.text is not None),
            gr.update(value=f"“{one.words}”" if one.words else "no trigger", interactive=bool(one.words)),
        ]
    return updates


def known_of(shared: Shared, name: str, base: str) -> Known:
    """What there is to know of an adapter before it joins a mix.

    Raises LibraryError if it is not there, AdapterFileError if it cannot be read, FitError if it does not fit
    the base, BaseModelError if that is none.
    """
    entry = shared.library.find(name)
    adapter = shared.library.get(entry.name)
    report = fits(adapter, shared.outline(base))
    report.require()
    ranks = f"rank {entry.rank}, " if entry.ranks else ""
    kinds = ", ".join(entry.kinds) or "words"
    parts = [f"{entry.family}, {kinds}, {ranks}{len(report.matched)} modules fit"]
    try:
        total = sum(
            float(product.sum()) for product in interference(Stack([(adapter, 1.0)])).products.values()
        )
        parts.append(f"‖ΔW‖ {math.sqrt(total):.3g}")
    except NeedsBase:
        parts.append("‖ΔW‖ depends on the base")
    if adapter.tokens:
        parts.append(f"adds the words {', '.join(adapter.tokens)}")
    return Known(entry.name, " · ".join(parts), entry.trigger)


def preferred(library: Library, name: str) -> float:
    """The weight that an adapter begins with: that of its notes, else 1."""
    weight = library.find(name).notes.weight
    return 1.0 if weight is None else _within(weight)


def build(shared: Shared, *, base: gr.Dropdown, prompt: Component, prefix: str = "") -> Mix:
    """The widgets, with what adds, folds away and removes rows already on them, and puts trigger words into
    `prompt`. `prefix` begins the ids of its elements."""
    known = gr.State(None)
    with gr.Row(equal_height=True):
        picker = gr.Dropdown(
            names(shared),
            value=None,
            label="Add an adapter",
            info="Type to search; it is checked against the base and joins the mix.",
            filterable=True,
            allow_custom_value=True,  # a name that is none is answered, and not silently put away
            elem_id=f"{prefix}picker",
            scale=4,
        )
        refresh = gr.Button("↻", min_width=40, scale=0, elem_id=f"{prefix}refresh")
    message = gr.HTML(elem_id=f"{prefix}message")
    mix = Mix(known, picker, message, tuple(_row(place, prefix) for place in range(MAX_ROWS)))

    def add(name: str | None, base: str, *values: Any) -> list[Any]:
        return [gr.Dropdown(value=None), *added(shared, name, base, values)]

    asked = [picker, base, *mix.inputs]
    picker.input(add, asked, [picker, message, *mix.outputs], api_visibility="private")
    base.change(
        lambda base, *values: rechecked(shared, base, values),
        [base, *mix.inputs],
        [message, *mix.outputs],
        **QUIET,
    )
    refresh.click(lambda: _listed(shared), None, picker, api_visibility="private")
    for place, row in enumerate(mix.rows):
        row.has_text.input(
            lambda on, weight: gr.Slider(visible=on, value=weight),
            [row.has_text, row.weight],
            row.text,
            api_visibility="private",
        )

        def remove(*values: Any, place: int = place) -> list[Any]:
            return shown(*_without(values, place))

        row.remove.click(remove, mix.inputs, mix.outputs, api_visibility="private")

        def insert(known: Sequence[Known], text: str, place: int = place) -> str:
            words = known[place].words if known and place < len(known) else ""
            return text if not words or words in text else f"{text}, {words}" if text else words

        row.words.click(insert, [mix.known, prompt], prompt, api_visibility="private")
    return mix


def added(shared: Shared, name: str | None, base: str, values: Sequence[Any]) -> list[Any]:
    """Updates for the message and `Mix.outputs` after an adapter was chosen."""
    known, rows = list(values[0] or []), _rows(values)
    if not name:
        return ["", *[gr.skip()] * len(shown([], []))]
    try:
        found = shared.library.find(name).name
        if any(one.name == found for one in known):
            raise DiffloraError(f"{name} is in the mix already: move its slider.")
        if len(known) == MAX_ROWS:
            raise DiffloraError(f"the mix has {MAX_ROWS} adapters, which is all there is room for.")
        known.append(known_of(shared, name, base))
        rows = (*rows, MixRow(name=known[-1].name, unet=preferred(shared.library, name)))
        told = notice(f"<b>{html.escape(known[-1].name)}</b> joined the mix")
    except DiffloraError as error:
        told = problem(error)
    return [told, *shown(known, rows)]


def fitting(
    shared: Shared, rows: Sequence[MixRow], base: str, *, there: Sequence[Known] | None = ()
) -> tuple[list[Known], list[MixRow], list[str]]:
    """What is known of those rows whose adapters are there and fit the base, those rows, and why others are
    left out or changed. What is known of those `there` already is not measured again."""
    before = {one.name: one for one in there or ()}
    known, fit, wrong = [], [], []
    for row in rows:
        try:
            known.append(before.get(row.name) or known_of(shared, row.name, base))
            text = None if row.text is None else _within(row.text)
            fit.append(row.model_copy(update={"unet": _within(row.unet), "text": text}))
            if fit[-1] != row:
                wrong.append(f"{row.name}: the sliders end at {LIMIT:g}, so its weight is not {row.unet:g}")
        except DiffloraError as error:
            wrong.append(f"{row.name} is left out of the mix: {error}")
    return known, fit, wrong


def rechecked(shared: Shared, base: str, values: Sequence[Any]) -> list[Any]:
    """Updates for the message and `Mix.outputs` after the base was changed: what does not fit it leaves."""
    known, rows, wrong = fitting(shared, _rows(values), base)
    return [problem(DiffloraError("\n".join(wrong))) if wrong else "", *shown(known, rows)]


def _within(weight: float) -> float:
    return max(-LIMIT, min(LIMIT, weight))


def names(shared: Shared) -> list[str]:
    """The names of the adapters that can be read."""
    return list(shared.library.entries)


def choices(shared: Shared) -> gr.Dropdown:
    """Update for the picker of a mix after adapters have come or gone."""
    return gr.Dropdown(choices=names(shared))


def _listed(shared: Shared) -> gr.Dropdown:
    shared.library.refresh()
    return choices(shared)


def _without(values: Sequence[Any], place: int) -> tuple[list[Known], list[MixRow]]:
    known, rows = list(values[0] or []), list(_rows(values))
    if place < len(rows):
        del known[place], rows[place]
    return known, rows


def _row(place: int, prefix: str) -> RowWidgets:
    with gr.Group(visible=False, elem_classes="mix-row") as group:
        with gr.Row(equal_height=True):
            on = gr.Checkbox(
                True, label="on", container=False, min_width=50, scale=0, elem_id=f"{prefix}on-{place}"
            )
            weight = gr.Slider(
                -LIMIT,
                LIMIT,
                value=1.0,
                step=0.05,
                label="weight",
                elem_id=f"{prefix}weight-{place}",
                scale=6,
            )
            remove = gr.Button("✕", min_width=40, scale=0, elem_id=f"{prefix}remove-{place}")
        with gr.Row(equal_height=True):
            words = gr.Button("trigger", size="sm", elem_id=f"{prefix}words-{place}")
            has_text = gr.Checkbox(
                False,
                label="another weight on the text encoders",
                container=False,
                elem_id=f"{prefix}own-{place}",
            )
        text = gr.Slider(
            -LIMIT,
            LIMIT,
            value=1.0,
            step=0.05,
            label="weight on the text encoders",
            visible=False,
            elem_id=f"{prefix}text-{place}",
        )
    return RowWidgets(group, on, weight, has_text, text, words, remove)
