"""A box for a prompt, which shows by an example what the base understands."""

from __future__ import annotations

from typing import Any

import gradio as gr

from difflora import DiffloraError
from webui.following import QUIET
from webui.shared import Shared

EXAMPLES = {"shapes": "such as: a large red heart on a blue background"}
OTHERWISE = "such as: a lighthouse on a cliff at dusk, oil painting"


def build(shared: Shared, base: gr.Dropdown, **looks: Any) -> gr.Textbox:
    """The box; `looks` are options of gr.Textbox."""
    begin = shared.settings.base_model
    box = gr.Textbox(label="Prompt", placeholder=example(shared, begin), **looks)
    base.change(lambda name: gr.update(placeholder=example(shared, name or "")), base, box, **QUIET)
    return box


def example(shared: Shared, base: str) -> str:
    """A prompt that a base can draw; none for what is no base."""
    try:
        return EXAMPLES.get(shared.outline(base).facts.variant, OTHERWISE)
    except DiffloraError:
        return ""
