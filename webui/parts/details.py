"""One adapter of the library: what is known of it, its notes, the other files made of it, and the trash."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from difflora import DiffloraError, LibraryEntry
from difflora.errors import LibraryError
from webui.following import QUIET, notice, problem
from webui.parts import discard, making, pair, strength
from webui.shared import Shared
from webui.shelf import another
from webui.tabs.tab import Handed, Page


@dataclass(frozen=True, slots=True)
class Details:
    """`selected` is a State with the name of the adapter that is looked at, `changed` one with a number that
    is another one whenever files have come or gone."""

    selected: gr.State
    changed: gr.State


@dataclass(frozen=True, slots=True)
class Fields:
    """The widgets that show what is known of an adapter at once."""

    told: Component
    use: gr.Button
    trigger: Component
    weight: Component
    text: Component

    @property
    def all(self) -> list[Any]:
        """In the order of what `_looking` tells."""
        return [self.told, self.use, self.trigger, self.weight, self.text]


def build(shared: Shared, page: Page) -> Details:
    """The details of an adapter, which are shown once its name is in `selected`."""
    selected, changed = gr.State(""), gr.State(0)
    told = gr.HTML(notice("Click an adapter."), elem_id="details")
    use = gr.Button("Draw with it", variant="primary", interactive=False, elem_id="library-use")
    strength.build(shared, selected)
    with gr.Accordion("Notes", open=False):
        trigger = gr.Textbox(label="Trigger words", elem_id="note-trigger")
        weight = gr.Textbox(label="Preferred weight", placeholder="1", elem_id="note-weight")
        text = gr.Textbox(label="Notes", lines=3, elem_id="note-text")
        save = gr.Button("Save the notes beside the file", size="sm", elem_id="note-save")
        saved = gr.HTML(elem_id="noted")
    making.build(shared, selected, changed)
    pair.build(shared, page.base, selected)
    discard.build(shared, selected, changed, told)
    fields = Fields(told, use, trigger, weight, text)
    selected.change(_looking(shared, fields), selected, fields.all, **QUIET)
    use.click(
        lambda name: (Handed(name), gr.update(selected="generate")),
        selected,
        [page.handed, page.tabs],
        **QUIET,
    )
    save.click(_noting(shared), [selected, trigger, weight, text], [saved, changed], **QUIET)
    return Details(selected, changed)


def _looking(shared: Shared, fields: Fields) -> Callable[[str], list[Any]]:
    def look(name: str) -> list[Any]:
        if not name:
            return [gr.skip(), gr.update(interactive=False), "", "", ""]
        try:
            entry = shared.library.find(name)
        except DiffloraError as error:
            return [problem(error), *[gr.skip()] * (len(fields.all) - 1)]
        weight = "" if entry.notes.weight is None else f"{entry.notes.weight:g}"
        return [_told(entry), gr.update(interactive=True), entry.trigger, weight, entry.notes.text]

    return look


def _noting(shared: Shared) -> Callable[..., tuple[str, Any]]:
    def on_save(name: str, trigger: str, weight: str, text: str) -> tuple[str, Any]:
        try:
            number = float(weight) if weight.strip() else 0.0  # which takes the note away
            shared.library.note(name, trigger=trigger, weight=number, text=text)
        except ValueError:
            return problem(LibraryError(f"{weight!r} is no number: write a weight such as 0.7.")), gr.skip()
        except DiffloraError as error:
            return problem(error), gr.skip()
        return notice("saved"), another()

    return on_save


def _told(entry: LibraryEntry) -> str:
    """An entry as HTML; whatever its file says is text in it."""
    facts = {
        "family": entry.family,
        "kind": ", ".join(f"{name} {count}" for name, count in entry.kinds.items()),
        "rank": entry.rank,
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
