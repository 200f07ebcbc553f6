"""Above the tabs: the base model, what is known of it, and the device with its memory."""

from __future__ import annotations

import html
import json

import gradio as gr

from difflora import DiffloraError
from webui.bases import choices
from webui.following import QUIET, notice
from webui.shared import Shared

EVERY = 4.0  # seconds between two looks at the device


def build(shared: Shared, page: gr.Blocks) -> gr.Dropdown:
    """The widgets; returns the one that names the base."""
    begin = shared.settings.base_model
    with gr.Row(elem_id="header"):
        gr.Markdown("## difflora", min_width=120)
        base = gr.Dropdown(
            choices(shared.settings),
            value=begin,
            label="Base model: one of the list, or type a folder, a .safetensors file or a Hub id",
            allow_custom_value=True,
            filterable=True,
            elem_id="base",
            scale=6,
        )
        with gr.Column(scale=5, min_width=240):
            facts = gr.HTML(facts_of(shared, begin), elem_id="base-facts")
            device = gr.HTML(notice("…"), elem_id="device")
    base.change(lambda name: facts_of(shared, name or ""), base, facts, **QUIET)
    for event in (page.load, gr.Timer(EVERY).tick):
        event(lambda: device_of(shared), None, device, queue=False, **QUIET)
    page.load(lambda: gr.update(choices=choices(shared.settings)), None, base, **QUIET)
    return base


def facts_of(shared: Shared, base: str) -> str:
    """What is known of a base, as HTML: its family and size, or why it cannot be used."""
    try:
        facts = shared.outline(base).facts
    except DiffloraError as error:
        return notice(html.escape(str(error)), is_error=True)
    kind = f"a small {facts.family}" if facts.variant == "shapes" else facts.variant
    text = f"{facts.name}: {kind}, {facts.resolution} px, {facts.prediction_type.replace('_', '-')}"
    return notice(html.escape(text))


def device_of(shared: Shared) -> str:
    """The worker's device and its memory, as HTML."""
    try:
        state = json.loads(shared.settings.state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return notice("the worker is starting")
    used, total = (f"{state[name] / 2**30:.1f}" for name in ("used", "total"))
    memory = f" · {used} of {total} GiB" if state["total"] else ""
    loaded = f" · {state['loaded']} loaded" if state["loaded"] else ""
    return notice(html.escape(f"{state['device']}{memory}{loaded}"))
