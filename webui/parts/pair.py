"""An adapter beside another one: how alike they are, module by module."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio.components import Component
from pydantic import ValidationError

from difflora import DiffloraError
from difflora.errors import ConfigError
from webui.following import FOLLOWING, QUIET, problem, views
from webui.shared import Shared
from webui.work.arithmetic import HEAT, Comparing


def build(shared: Shared, base: Component, selected: gr.State) -> None:
    """A folded part that compares the adapter that is `selected` with another one."""
    with gr.Accordion("Compare with another", open=False) as folded:
        with gr.Row(elem_classes="ends"):
            other = gr.Dropdown(
                [],
                value=None,
                label="Adapter",
                info="Type to search.",
                elem_id="other",
                filterable=True,
                scale=3,
            )
            go = gr.Button("Compare", size="sm", min_width=90, scale=1, elem_id="compare-pair")
        report = gr.HTML(elem_id="pair")
        heat = gr.Image(
            show_label=False,
            interactive=False,
            visible=False,
            type="filepath",
            elem_id="pair-heat",
            buttons=[],
        )
    folded.expand(lambda: gr.Dropdown(choices=list(shared.library.entries)), None, other, **QUIET)
    go.click(_comparing(shared), [selected, other, base], [report, heat], **FOLLOWING)


def _comparing(shared: Shared) -> Callable[..., Iterator[tuple[Any, Any]]]:
    def on_compare(request: gr.Request, name: str, other: str | None, base: str) -> Iterator[tuple[Any, Any]]:
        try:
            if not name or not other:
                raise ConfigError("two adapters are compared: click one, and choose another one here.")
            asked = Comparing(adapter=name, other=other, base=base)
            for seen in views(shared, shared.submit(request, "compare", asked)):
                picture = next((file for file in seen.pictures if file.endswith(HEAT)), None)
                told = _told(json.loads(seen.job.result)) if seen.job.state == "done" else seen.status
                yield told, gr.update(value=picture, visible=picture is not None)
        except (DiffloraError, ValidationError) as error:
            yield problem(error), gr.update(visible=False)

    return on_compare


def _told(facts: dict[str, Any]) -> str:
    """A comparison as HTML; names and paths are text in it."""
    first, second = (html.escape(name) for name in facts["names"])
    rows = [
        ("‖ΔW‖", f"{facts['norms'][0]:.4g} and {facts['norms'][1]:.4g}"),
        ("cosine", f"{facts['cosine']:+.4f} over all modules"),
        (
            "modules",
            f"{facts['both']} changed by both, {facts['alone'][0]} by {first} alone, "
            f"{facts['alone'][1]} by {second} alone",
        ),
    ]
    if facts["overlap"] is not None:
        rows.insert(2, ("shared directions", f"{facts['overlap']:.0%} (median of the modules)"))
    whole = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows)
    head = "<tr><th>most alike</th><th>cosine</th><th>shared</th><th>‖ΔW‖</th></tr>"
    modules = "".join(
        f"<tr><td>{html.escape(one['module'])}</td><td>{one['cosine']:+.3f}</td><td>{one['overlap']:.0%}</td>"
        f"<td>{one['norm_a']:.2g}, {one['norm_b']:.2g}</td></tr>"
        for one in facts["modules"]
    )
    listed = f'<table class="modules">{head}{modules}</table>' if modules else ""
    title = f"<h3>{first} and {second}</h3>"
    return f'<div class="facts">{title}<table>{whole}</table>{listed}</div>'
