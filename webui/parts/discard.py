"""An adapter goes to the trash, and comes back from it."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from difflora import DiffloraError
from webui.following import QUIET, notice, problem
from webui.shared import Shared
from webui.shelf import another, out_of_trash, to_trash


def build(shared: Shared, selected: gr.State, changed: gr.State, told: Component) -> None:
    """The two buttons; `told` says what became of the adapter that was `selected`."""
    gone = gr.State(None)  # the name of the adapter in the trash, and the folder that it is in there
    with gr.Row():
        trash = gr.Button(
            "Move to the trash", variant="stop", size="sm", interactive=False, elem_id="trash", scale=1
        )
        undo = gr.Button("Undo", size="sm", visible=False, elem_id="untrash", scale=1)
    selected.change(lambda name: gr.update(interactive=bool(name)), selected, trash, **QUIET)
    outputs = [told, selected, gone, undo, changed]
    trash.click(_trashing(shared), selected, outputs, **QUIET)
    undo.click(_undoing(shared), gone, outputs, **QUIET)


def _trashing(shared: Shared) -> Callable[[str], list[Any]]:
    def on_trash(name: str) -> list[Any]:
        try:
            entry = shared.library.find(name)
            place = to_trash(entry, shared)
        except DiffloraError as error:
            return [problem(error), *[gr.skip()] * 4]
        text = f"<b>{html.escape(entry.name)}</b> is in the trash, with its notes and its picture."
        undo = gr.update(visible=True, value=f"Undo: put {entry.path.stem} back")
        return [notice(text), "", (entry.name, place), undo, another()]

    return on_trash


def _undoing(shared: Shared) -> Callable[[tuple[str, Path]], list[Any]]:
    def on_undo(gone: tuple[str, Path]) -> list[Any]:
        name, place = gone
        try:
            out_of_trash(place, shared)
        except DiffloraError as error:
            return [problem(error), *[gr.skip()] * 4]
        return [gr.skip(), name, None, gr.update(visible=False), another()]

    return on_undo
