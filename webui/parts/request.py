"""The form that asks for pictures: its widgets, what they ask for, and how they are filled again."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from pydantic.fields import FieldInfo

from difflora import SAMPLERS, DiffloraError, Request, token_count
from webui.following import QUIET
from webui.forms import Form, form
from webui.parts import mix as mixes
from webui.parts import prompt as prompt_box
from webui.shared import Shared
from webui.work.draw import Draw

SIZE = ("width", "height")
PAIRS = (("guidance", "guidance_rescale"), ("clip_skip", "batch"))
NUMBERS = (*SIZE, *PAIRS[0], *PAIRS[1])
WIDGETS, SEED = 7 + len(NUMBERS), 4  # how many there are; which of them is the seed
MOST_STEPS = 100


@dataclass(frozen=True, slots=True)
class Inputs:
    """The widgets of the form, less those of the mix. `again` takes the seed of the picture on show."""

    prompt: Component
    negative: Component
    sampler: Component
    steps: Component
    seed: Component
    count: Component
    compare: Component
    numbers: Form
    again: gr.Button

    @property
    def all(self) -> list[Component]:
        """In the order that `wanted` reads."""
        fixed = [self.prompt, self.negative, self.sampler, self.steps, self.seed, self.count, self.compare]
        return [*fixed, *self.numbers.values()]


def wanted(base: str, values: Sequence[Any], *, mix: Sequence[Any]) -> Draw:
    """What the form asks for: `values` are those of `Inputs.all`, `mix` those of `Mix.inputs`. An empty seed
    is a new one.

    Raises ConfigError naming every field that cannot be used.
    """
    prompt, negative, sampler, steps, seed, count, compare, *numbers = values
    given = {name: value for name, value in zip(NUMBERS, numbers, strict=True) if value not in (None, "")}
    request = Request(
        prompt=prompt,
        negative=negative,
        sampler=sampler,
        steps=int(steps),
        seed=seed if seed not in (None, "") else secrets.randbelow(2**32),
        **given,
    )
    return Draw(base=base, request=request, mix=mixes.rows_of(mix), count=int(count), compare=bool(compare))


def prompts(shared: Shared, base: gr.Dropdown) -> tuple[gr.Textbox, Component]:
    """The boxes of the prompt and the negative one, with a counter of tokens of both between."""
    words = "<lora:name:0.7> adds an adapter, (word:1.2) gives a word more weight. Ctrl+Enter draws."
    prompt = prompt_box.build(shared, base, lines=3, info=words, elem_id="prompt", autofocus=True)
    counter = gr.HTML('<div class="counter">0 tokens</div>', elem_id="counter")
    negative = gr.Textbox(label="Negative prompt", lines=1, elem_id="negative")
    for box in (prompt, negative):
        box.change(
            lambda text, other, base: _tokens(shared, text, other, base),
            [prompt, negative, base],
            counter,
            trigger_mode="always_last",
            **QUIET,
        )
    return prompt, negative


def settings(prompt: Component, negative: Component) -> Inputs:
    """The other widgets of the form, below its prompts."""
    with gr.Accordion("Settings", open=True):
        with gr.Row():
            sampler = gr.Dropdown(list(SAMPLERS), value="DPM++ 2M", label="Sampler", scale=2)
            steps = gr.Slider(1, MOST_STEPS, value=25, step=1, label="Steps", scale=2)
            count = gr.Number(1, minimum=1, maximum=64, precision=0, label="Images", scale=1)
        with gr.Row(equal_height=True):
            seed = gr.Textbox(label="Seed", placeholder="a new one each time", elem_id="seed", scale=3)
            dice = gr.Button("🎲", min_width=40, scale=0, elem_id="dice")
            again = gr.Button("♻", min_width=40, scale=0, elem_id="recycle")
        with gr.Row(equal_height=True, elem_classes="even"):
            numbers = form(Request, SIZE, blank=_default)
            swap = gr.Button("⇄", min_width=40, scale=0, elem_id="swap")
        for names in PAIRS:
            with gr.Row(elem_classes="even"):
                numbers |= form(Request, names, blank=_default)
        compare = gr.Checkbox(False, label="Also draw with the adapters off, to compare", elem_id="compare")
    dice.click(lambda: "", None, seed, api_visibility="private")
    sizes = [numbers["width"], numbers["height"]]
    swap.click(lambda width, height: (height, width), sizes, sizes, api_visibility="private")
    return Inputs(prompt, negative, sampler, steps, seed, count, compare, numbers, again)


def _default(info: FieldInfo) -> str:
    return "the base's own" if info.default is None else str(info.default)


def filled(shared: Shared, drawing: Draw) -> list[Any]:
    """Which adapters of a drawing cannot be used; then updates for `Inputs.all` and `Mix.outputs`."""
    request = drawing.request.model_copy(update={"steps": min(drawing.request.steps, MOST_STEPS)})
    known, rows, wrong = mixes.fitting(shared, drawing.mix, drawing.base)
    given = request.model_dump(include=set(NUMBERS), exclude_defaults=True, exclude_none=True)
    if request.steps != drawing.request.steps:
        wrong.append(f"{drawing.request.steps} steps: the slider ends at {MOST_STEPS}")
    numbers = [f"{given[name]:g}" if name in given else "" for name in NUMBERS]
    fixed = [request.prompt, request.negative, request.sampler, request.steps, str(request.seed)]
    return [wrong, *fixed, drawing.count, drawing.compare, *numbers, *mixes.shown(known, rows)]


def _tokens(shared: Shared, text: str, negative: str, base: str) -> str:
    try:
        model = shared.outline(base)
        told = f"{token_count(model, text)} tokens"
        told += f" · {token_count(model, negative)} negative" if negative.strip() else ""
    except DiffloraError:  # what is not typed to its end yet, or no base
        told = ""
    return f'<div class="counter">{told}</div>'
