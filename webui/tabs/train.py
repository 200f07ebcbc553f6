"""The tab that trains an adapter from a folder of images, and shows how it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component
from pydantic.fields import FieldInfo

from difflora import PRESETS, StepReport, TrainConfig, configure, train
from difflora.errors import DiffloraError
from webui.forms import Form, form, given
from webui.shared import GPU, Shared
from webui.tabs.tab import Tab

MAIN = (
    "trigger",
    "steps",
    "rank",
    "learning_rate",
    "batch_size",
    "train_text_encoder",
    "preview_every",
    "seed",
)
MORE = ("resolution", "alpha", "targets", "repeats", "flip", "caption_dropout", "min_snr_gamma", "save_every")


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page shows at one moment of a training."""

    status: str
    previews: tuple[Path, ...] = ()


def run(shared: Shared, values: Mapping[str, Any]) -> Iterator[Shown]:
    """Trains as `values` (fields of TrainConfig) say; yields after every step what to show.

    `shared.stop` ends it after the step at hand, its state saved. Raises what `configure` and `train` do.
    """
    yield Shown("preparing")
    config = configure(values)
    shared.forget_base()
    shared.stop.clear()
    started, first, previews, notes = time.monotonic(), None, (), ()
    # A generator, though declared an iterator; closing it saves the state.
    with closing(train(config)) as reports:
        for report in reports:
            first = report.step if first is None else first
            previews, notes = report.previews or previews, (*notes, *report.notes)
            left = _seconds_left(report, first, time.monotonic() - started)
            yield Shown("\n".join([_line(report, left), *notes]), previews)
            if shared.stop.is_set() and report.adapter is None:
                break
        else:
            return
    yield Shown(f"stopped after step {report.step} and saved; train with the same name to continue", previews)


def _seconds_left(report: StepReport, first: int, seconds: float) -> float | None:
    """None after the first step of a run, whose time is that of loading."""
    done = report.step - first
    return seconds / done * (report.total - report.step) if done else None


def _line(report: StepReport, left: float | None) -> str:
    if report.adapter is not None:
        return f"finished: {report.adapter} ({report.total} steps, loss {report.loss:.4f})"
    eta = "" if left is None else f"   {int(left) // 60}:{int(left) % 60:02d} left"
    facts = (
        f"loss {report.loss:.4f}   rate {report.learning_rate:.1e}   {report.images_per_second:.1f} images/s"
    )
    return f"step {report.step} of {report.total}   {facts}{eta}"


@dataclass(frozen=True, slots=True)
class Widgets:
    """The inputs of the tab."""

    options: Form
    overwrite: Component

    def all(self) -> set[Block]:
        """Every input."""
        return {self.overwrite, *self.options.values()}

    def read(self, inputs: Mapping[Component, Any]) -> dict[str, Any]:
        """The fields of TrainConfig that were filled in."""
        return {**given(self.options, inputs), "overwrite": inputs[self.overwrite]}


def _on_train(shared: Shared, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(status, files for the gallery), again and again; an error is the last status."""
    try:
        for shown in run(shared, values):
            yield shown.status, [str(file) for file in shown.previews] or gr.skip()
    except DiffloraError as error:
        yield f"{type(error).__name__}: {error}", gr.skip()


def _build(shared: Shared) -> None:
    with gr.Row():
        with gr.Column():
            widgets = _inputs(shared)
            with gr.Row():
                start = gr.Button("Train", variant="primary")
                stop = gr.Button("Stop and save")
        with gr.Column():
            status = gr.Textbox(label="Status", interactive=False, lines=4, max_lines=20)
            gallery = gr.Gallery(label="Previews", columns=4, object_fit="contain", interactive=False)

    def on_train(inputs: dict[Component, Any]) -> Iterator[tuple[str, Any]]:
        yield from _on_train(shared, widgets.read(inputs))

    start.click(
        on_train, widgets.all(), [status, gallery], api_name="train", concurrency_id=GPU, concurrency_limit=1
    )
    stop.click(shared.stop.set, queue=False, api_visibility="private")


def _by_the_preset(info: FieldInfo) -> str:
    return "by the preset"


def _inputs(shared: Shared) -> Widgets:
    settings = shared.settings
    options: dict[str, Component] = {
        "preset": gr.Radio(list(PRESETS), value=next(iter(PRESETS)), label="Preset"),
        "base_model": gr.Textbox(
            settings.base_model, label="Base model", info="Folder, .safetensors file or Hub id."
        ),
        "data": gr.Textbox(
            settings.data, label="Folder of images", info="With a caption in a .txt beside each."
        ),
        "name": gr.Textbox("my-style", label="Name of the adapter"),
        "output": gr.Textbox(str(settings.adapters), label="Output folder"),
    }
    with gr.Row():
        options |= form(TrainConfig, MAIN, blank=_by_the_preset)
    with gr.Accordion("More options", open=False), gr.Row():
        options |= form(TrainConfig, MORE, blank=_by_the_preset)
    overwrite = gr.Checkbox(
        False, label="Train again if it is finished", info="Replaces the adapter of that name."
    )
    return Widgets(options, overwrite)


TRAIN = Tab("Train", _build)
