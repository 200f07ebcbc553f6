"""One adapter of the library: what is known of it, notes, and other files made of it."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import pandas as pd
from gradio.components import Component
from pydantic import BaseModel, ValidationError

from difflora import DiffloraError, LibraryEntry, profile
from difflora.errors import LibraryError
from webui.following import problem, views
from webui.shared import Shared
from webui.shelf import to_trash
from webui.tabs.tab import Page
from webui.work.arithmetic import Converting, Resizing

_EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True, slots=True)
class Details:
    """The widgets. `selected` is a State with the name of the adapter that is looked at."""

    selected: gr.State
    told: Component
    use: gr.Button
    trash: gr.Button
    plot: Component
    trigger: Component
    weight: Component
    text: Component
    made: Component

    @property
    def fields(self) -> list[Any]:
        """What changes with the adapter."""
        return [self.told, self.use, self.trash, self.plot, self.trigger, self.weight, self.text]


def build(shared: Shared, page: Page) -> gr.State:
    """The details of an adapter; returns the State that chooses it by its name."""
    selected = gr.State("")
    told = gr.HTML('<div class="status">Click an adapter.</div>', elem_id="details")
    use = gr.Button("Draw with it", variant="primary", interactive=False, elem_id="library-use")
    plot = gr.LinePlot(x="block", y="norm", height=200, visible=False, x_label_angle=-60)
    with gr.Accordion("Notes", open=False):
        trigger = gr.Textbox(label="Trigger words")
        weight = gr.Textbox(label="Preferred weight", placeholder="1")
        text = gr.Textbox(label="Notes", lines=3)
        save = gr.Button("Save the notes beside the file", size="sm")
    made = gr.HTML(elem_id="made")
    trash = gr.Button(
        "Move to the trash", variant="stop", size="sm", interactive=False, elem_id="trash", render=False
    )
    details = Details(selected, told, use, trash, plot, trigger, weight, text, made)
    _connect_making(shared, details)
    trash.render()
    selected.change(_looking(shared, details), selected, details.fields, **_EVENT)
    use.click(lambda name: (name, gr.update(selected="generate")), selected, [page.pick, page.tabs], **_EVENT)
    save.click(_noting(shared), [selected, trigger, weight, text], made, **_EVENT)
    trash.click(_trashing(shared), selected, [told, use, trash], **_EVENT)
    return selected


def _looking(shared: Shared, details: Details) -> Callable[[str], list[Any]]:
    def look(name: str) -> list[Any]:
        if not name:
            return [gr.skip()] * len(details.fields)
        try:
            entry = shared.library.find(name)
            profiled = profile(shared.library.get(entry.name))
        except DiffloraError as error:
            return [problem(error), *[gr.skip()] * (len(details.fields) - 1)]
        norms = pd.DataFrame(list(profiled.norms_by_block.items()), columns=["block", "norm"])
        on = gr.update(interactive=True)
        return [
            _told(entry, profiled.norm),
            on,
            on,
            gr.update(value=norms, visible=len(norms) > 1),
            entry.trigger,
            "" if entry.notes.weight is None else f"{entry.notes.weight:g}",
            entry.notes.text,
        ]

    return look


def _noting(shared: Shared) -> Callable[..., str]:
    def on_save(name: str, trigger: str, weight: str, text: str) -> str:
        try:
            number = float(weight) if weight.strip() else None
            shared.library.note(name, trigger=trigger, weight=number, text=text)
        except ValueError:
            return problem(LibraryError(f"{weight!r} is no number: write a weight such as 0.7."))
        except DiffloraError as error:
            return problem(error)
        return '<div class="status">saved</div>'

    return on_save


def _trashing(shared: Shared) -> Callable[[str], tuple[Any, Any, Any]]:
    def on_trash(name: str) -> tuple[Any, Any, Any]:
        try:
            place = to_trash(shared.library.find(name), shared)
        except DiffloraError as error:
            return problem(error), gr.skip(), gr.skip()
        off = gr.update(interactive=False)
        return f'<div class="status">moved to {html.escape(str(place))}</div>', off, off

    return on_trash


def _connect_making(shared: Shared, details: Details) -> None:
    """Other files made of the adapter: a smaller one, or one in another format."""
    with gr.Accordion("Make another file of it", open=False):
        name = gr.Textbox(label="Name of the new adapter")
        with gr.Row():
            rank = gr.Textbox("", label="Rank", placeholder="for a smaller one")
            resize = gr.Button("Resize", size="sm")
        with gr.Row():
            layout = gr.Dropdown(["diffusers", "kohya"], value="diffusers", label="Format")
            convert = gr.Button("Convert", size="sm")

    def on_resize(request: gr.Request, adapter: str, name: str, rank: str) -> Iterator[str]:
        wanted = {"adapter": adapter, "name": name, "rank": rank or None}
        yield from _making(shared, request, "resize", Resizing, wanted)

    def on_convert(request: gr.Request, adapter: str, name: str, layout: str) -> Iterator[str]:
        wanted = {"adapter": adapter, "name": name, "format": layout}
        yield from _making(shared, request, "convert", Converting, wanted)

    chosen = details.selected
    resize.click(on_resize, [chosen, name, rank], details.made, concurrency_limit=None, **_EVENT)
    convert.click(on_convert, [chosen, name, layout], details.made, concurrency_limit=None, **_EVENT)


def _making(
    shared: Shared, request: gr.Request, kind: str, model: type[BaseModel], wanted: dict[str, Any]
) -> Iterator[str]:
    try:
        asked = model.model_validate(wanted)
        for seen in views(shared, shared.jobs.submit(shared.owner(request), kind, asked.model_dump_json())):
            facts = json.loads(seen.job.result) if seen.job.state == "done" else {}
            lost = f", {facts['error']:.2%} of ΔW lost" if facts.get("error") else ""
            kept = f'<div class="status">kept as <b>{html.escape(facts.get("adapter", ""))}</b>{lost}</div>'
            yield kept if facts else seen.status
        shared.library.refresh()
    except (DiffloraError, ValidationError) as error:
        yield problem(error)


def _told(entry: LibraryEntry, norm: float) -> str:
    """An entry as HTML; whatever its file says is text in it."""
    facts = {
        "family": entry.family,
        "kind": ", ".join(f"{name} {count}" for name, count in entry.kinds.items()),
        "rank": ", ".join(map(str, entry.ranks)),
        "‖ΔW‖": f"{norm:.4g}",
        "trigger": entry.trigger,
        "size": f"{entry.size / 2**20:.1f} MiB",
        "numbers": ", ".join(entry.facts.dtypes),
        "AutoV3": entry.hashes.autov3,
        "AutoV2": entry.hashes.autov2,
        **_training(entry.report.metadata),
        "file": str(entry.path),
    }
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in facts.items()
        if value
    )
    return f'<div class="facts"><h3>{html.escape(entry.name)}</h3><table>{rows}</table></div>'


def _training(metadata: Any) -> dict[str, str]:
    keys = {
        "trained on": "ss_sd_model_name",
        "steps": "ss_steps",
        "images": "ss_num_train_images",
        "learning rate": "ss_learning_rate",
        "seed": "ss_seed",
    }
    return {name: str(metadata.get(key, "")) for name, key in keys.items()}
