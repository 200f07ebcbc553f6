"""Other files made of an adapter: a smaller one, or one in another format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gradio as gr
from pydantic import BaseModel, ValidationError

from difflora import DiffloraError
from webui.following import FOLLOWING, kept, problem, views
from webui.shared import Shared
from webui.shelf import another
from webui.work.arithmetic import Converting, Resizing


def build(shared: Shared, selected: gr.State, changed: gr.State) -> None:
    """A folded part that makes files of the adapter that is `selected`; `changed` tells that there are."""
    with gr.Accordion("Make another file of it", open=False):
        name = gr.Textbox(label="Name of the new adapter", elem_id="make-name")
        with gr.Row(elem_classes="ends"):
            rank = gr.Textbox("", label="Rank", placeholder="for a smaller one", elem_id="make-rank", scale=3)
            resize = gr.Button("Resize", size="sm", min_width=90, scale=1, elem_id="resize")
        with gr.Row(elem_classes="ends"):
            layout = gr.Dropdown(["diffusers", "kohya"], value="diffusers", label="Format", scale=3)
            convert = gr.Button("Convert", size="sm", min_width=90, scale=1, elem_id="convert")
        made = gr.HTML(elem_id="made")

    def on_resize(request: gr.Request, adapter: str, name: str, rank: str) -> Iterator[tuple[str, Any]]:
        wanted = {"adapter": adapter, "name": name, "rank": rank or None}
        yield from _making(shared, request, "resize", Resizing, wanted)

    def on_convert(request: gr.Request, adapter: str, name: str, layout: str) -> Iterator[tuple[str, Any]]:
        wanted = {"adapter": adapter, "name": name, "format": layout}
        yield from _making(shared, request, "convert", Converting, wanted)

    resize.click(on_resize, [selected, name, rank], [made, changed], **FOLLOWING)
    convert.click(on_convert, [selected, name, layout], [made, changed], **FOLLOWING)


def _making(
    shared: Shared, request: gr.Request, kind: str, model: type[BaseModel], wanted: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    try:
        asked = model.model_validate(wanted)
        for seen in views(shared, shared.submit(request, kind, asked)):
            if seen.job.state != "done":
                yield seen.status, gr.skip()
                continue
            facts = json.loads(seen.job.result)
            shared.library.refresh()
            yield kept(facts), another()
    except (DiffloraError, ValidationError) as error:
        yield problem(error), gr.skip()
