"""What else can be done with a mix: how its adapters meet, the mix as one adapter, or in a base."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import BaseModel, ValidationError

from difflora import DiffloraError
from difflora.errors import ConfigError
from webui.bases import choices
from webui.following import FOLLOWING, QUIET, View, kept, notice, problem, views
from webui.parts import mix as mixes
from webui.parts.mix import Mix
from webui.shared import Shared
from webui.work.arithmetic import HEAT, Baking, Meeting, Merging
from webui.work.desk import MixRow

WEAK, CLEAR, STRONG = 0.75, 0.95, 1.25  # shares of an adapter that are in the sum


@dataclass(frozen=True, slots=True)
class Taken:
    """A mix whose picture there is already."""

    mix: tuple[MixRow, ...]
    picture: Path


def build(shared: Shared, base: gr.Dropdown, mix: Mix, taken: gr.State) -> None:
    """Two folded parts below a mix. `taken` may hold a `Taken`, whose picture is kept with its mix."""
    with gr.Accordion("How they meet", open=False):
        meet = gr.Button("Measure the interference of this mix", size="sm", elem_id="meet")
        report = gr.HTML(elem_id="meeting")
        heat = gr.Image(show_label=False, interactive=False, visible=False, type="filepath")
    with gr.Accordion("Keep this mix", open=False):
        name = gr.Textbox("my-blend", label="Name", elem_id="keep-name")
        with gr.Row():
            rank = gr.Textbox("", label="Rank", placeholder="exact: the ranks add up", elem_id="keep-rank")
            dtype = gr.Radio(["float16", "float32"], value="float16", label="Numbers")
        with gr.Row():
            save = gr.Button("Save as one adapter", variant="primary", elem_id="keep")
            bake = gr.Button("Bake into a copy of the base", elem_id="bake")
        result = gr.HTML(elem_id="kept")
    meet.click(_meeting(shared), [base, *mix.inputs], [report, heat], **FOLLOWING)
    save.click(_saving(shared), [base, name, rank, dtype, taken, *mix.inputs], result, **FOLLOWING)
    bake.click(_baking(shared), [base, name, *mix.inputs], result, **FOLLOWING).then(
        lambda: gr.update(choices=choices(shared.settings)), None, base, **QUIET
    )


def _run(shared: Shared, request: gr.Request, kind: str, wanted: BaseModel) -> Iterator[View]:
    yield from views(shared, shared.submit(request, kind, wanted))


def _meeting(shared: Shared) -> Callable[..., Any]:
    def on_meet(request: gr.Request, base: str, *values: Any) -> Iterator[tuple[Any, Any]]:
        try:
            for found in _run(shared, request, "meet", Meeting(base=base, mix=_several(values))):
                done = found.job.state == "done"
                picture = next((file for file in found.pictures if file.endswith(HEAT)), None)
                told = _met(found.job.result) if done else found.status
                yield told, gr.update(value=picture, visible=picture is not None)
        except (DiffloraError, ValidationError) as error:
            yield problem(error), gr.skip()

    return on_meet


def _saving(shared: Shared) -> Callable[..., Any]:
    def on_save(
        request: gr.Request, base: str, name: str, rank: str, dtype: str, taken: Taken | None, *values: Any
    ) -> Iterator[str]:
        try:
            rows = _several(values, least=1)
            given = {"mix": rows, "rank": rank or None, "dtype": dtype}
            wanted = Merging.model_validate({"base": base, "name": name, **given})
            for found in _run(shared, request, "merge", wanted):
                if found.job.state == "done" and taken is not None and taken.mix == rows:
                    _picture(taken.picture, shared.settings.adapters / f"{name}.preview.png")
                yield _kept(found)
            shared.library.refresh()
        except (DiffloraError, ValidationError) as error:
            yield problem(error)

    return on_save


def _baking(shared: Shared) -> Callable[..., Any]:
    def on_bake(request: gr.Request, base: str, name: str, *values: Any) -> Iterator[str]:
        try:
            wanted = Baking(base=base, mix=_several(values, least=1), name=name)
            for found in _run(shared, request, "bake", wanted):
                yield _kept(found)
        except (DiffloraError, ValidationError) as error:
            yield problem(error)

    return on_bake


def _picture(source: Path, target: Path) -> None:
    """Copies what the mix looks like beside its adapter, if the picture is still there."""
    with suppress(OSError):
        shutil.copyfile(source, target)


def _several(values: Sequence[Any], *, least: int = 2) -> tuple[MixRow, ...]:
    rows = tuple(row for row in mixes.rows_of(values) if row.on)
    if len(rows) < least:
        raise ConfigError(f"this needs {least} adapters, the mix has {len(rows)}: add one.")
    return rows


def _met(result: str) -> str:
    """An interference report as HTML."""
    facts = json.loads(result)
    least = min(one["survives"] for one in facts["adapters"])
    most = max(one["survives"] for one in facts["adapters"])
    lines = [
        f"<li><b>{html.escape(one['name'])}</b>: {one['survives']:.0%} of it is in the sum; at weight "
        f"{one['balanced']['unet']:.2f} the mix is as strong as its parts</li>"
        for one in facts["adapters"]
    ]
    worst = "".join(
        f"<li>{html.escape(one['module'])}: {one['clash']:+.2f}</li>" for one in facts["worst"][:5]
    )
    return notice(
        f"<b>{_verdict(least, most)}</b><ul>{''.join(lines)}</ul>"
        f"Where they clash most (1: they cancel, 0: they do not meet, below: they add up):<ul>{worst}</ul>"
    )


def _verdict(least: float, most: float) -> str:
    """What shares of the adapters that are in the sum mean, in a sentence."""
    if least < WEAK:
        return "They work against each other: much of what one has learned is lost in the mix."
    if most > STRONG:
        return "They push the same way: the mix is stronger than each of them; lower weights may look better."
    if least < CLEAR:
        return "They disturb each other a little: expect both looks, each somewhat weaker."
    return "They hardly disturb each other: each does in the mix what it does alone."


def _kept(found: View) -> str:
    """What became of a mix that was to be kept, as HTML."""
    return kept(json.loads(found.job.result)) if found.job.state == "done" else found.status
