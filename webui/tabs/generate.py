"""The tab that draws images with a weighted mix of adapters."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component
from pydantic.fields import FieldInfo

from difflora import SAMPLERS, Library, Recipe, Request, Stack, generate, resolve, save_png
from difflora.errors import DiffloraError
from webui.forms import Form, form, given
from webui.shared import GPU, Shared
from webui.tabs.tab import Tab

ROWS = 4
NUMBERS = ("steps", "guidance", "width", "height", "clip_skip")
NO_ADAPTER = ""
BASE_WORDS = "Folder, .safetensors file or Hub id."


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one click asks for. `request` holds the fields of a Request, its prompt with `<lora:...>` tags."""

    base: str
    request: Mapping[str, Any]
    adapters: Path
    weights: tuple[tuple[str, float], ...] = ()
    count: int = 1


@dataclass(frozen=True, slots=True)
class Widgets:
    """The inputs of the tab; `rows` are pairs of an adapter's name and its weight."""

    base: Component
    adapters: Component
    request: Form
    count: Component
    rows: tuple[tuple[Component, Component], ...]

    def all(self) -> set[Block]:
        """Every input."""
        return {
            self.base,
            self.adapters,
            self.count,
            *self.request.values(),
            *(w for row in self.rows for w in row),
        }

    def read(self, inputs: Mapping[Component, Any]) -> Wanted:
        """What the inputs ask for. An empty seed is a new one; a row without a name counts for nothing."""
        request = {"seed": secrets.randbelow(2**32), **given(self.request, inputs)}
        weights = tuple((inputs[name], inputs[weight]) for name, weight in self.rows if inputs[name])
        folder = Path(inputs[self.adapters])
        return Wanted(inputs[self.base], request, folder, weights, count=int(inputs[self.count] or 1))


def draw(shared: Shared, wanted: Wanted, *, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Draws and saves what is wanted; returns the PNG files, each with its recipe inside."""
    library = Library(wanted.adapters)
    resolved = resolve(wanted.request.get("prompt", ""), library)
    rows = [(library.get(name), weight) for name, weight in wanted.weights]
    request = Request(**{**wanted.request, "prompt": resolved.prompt})
    stack = Stack([*resolved.stack, *rows])
    model = shared.base(wanted.base)
    images = generate(model, request, stack=stack, count=wanted.count, progress=progress)
    files = []
    for image in images:
        recipe = Recipe.from_json(image.info["difflora"])
        files.append(_next_file(shared.settings.images, recipe.seed))
        save_png(image, files[-1], recipe)
    return files


def adapter_names(folder: str) -> list[str]:
    """Names of the adapters in a folder that can be read; none if there is no such folder."""
    return list(Library(folder).entries) if Path(folder).is_dir() else []


def _next_file(folder: Path, seed: int) -> Path:
    numbers = [int(head) for file in folder.glob("*.png") if (head := file.name.split("-")[0]).isdecimal()]
    return folder / f"{max(numbers, default=0) + 1:05d}-{seed}.png"


def _on_draw(
    shared: Shared, widgets: Widgets, inputs: Mapping[Component, Any], progress: gr.Progress
) -> tuple[Any, str]:
    """(files for the gallery, status): an error is told in the status, and the gallery stays as it is."""
    started = time.perf_counter()

    def show(done: int, total: int) -> None:
        progress((done, total), unit="steps")

    try:
        files = draw(shared, widgets.read(inputs), progress=show)
    except DiffloraError as error:
        return gr.skip(), f"Error: {error}"
    seconds = time.perf_counter() - started
    names = ", ".join(file.name for file in files)
    return [str(file) for file in files], f"{names} in {shared.settings.images} ({seconds:.1f} s)"


def _on_folder(folder: str) -> list[gr.Dropdown]:
    return [gr.Dropdown(choices=_choices(folder)) for _ in range(ROWS)]


def _choices(folder: str) -> list[tuple[str, str]]:
    return [("none", NO_ADAPTER), *((name, name) for name in adapter_names(folder))]


def _build(shared: Shared) -> None:
    with gr.Row():
        with gr.Column():
            prompts = _prompts()
            button = gr.Button("Generate", variant="primary")
            folder, rows = _adapters(shared)
            settings, count = _settings()
            base = gr.Textbox(shared.settings.base_model, label="Base model", info=BASE_WORDS)
        with gr.Column():
            gallery = gr.Gallery(label="Images", columns=2, object_fit="contain", interactive=False)
            status = gr.Textbox(label="Status", interactive=False, lines=2, max_lines=20)
    widgets = Widgets(base, folder, {**prompts, **settings}, count, rows)

    def on_draw(inputs: dict[Component, Any], progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        return _on_draw(shared, widgets, inputs, progress)

    button.click(
        on_draw,
        widgets.all(),
        [gallery, status],
        api_name="generate",
        concurrency_id=GPU,
        concurrency_limit=1,
    )


def _prompts() -> Form:
    words = "<lora:name:0.7> adds an adapter, (word:1.2) gives a word more weight."
    return {
        "prompt": gr.Textbox(label="Prompt", lines=3, info=words),
        "negative": gr.Textbox(label="Negative prompt", lines=1),
    }


def _adapters(shared: Shared) -> tuple[Component, tuple[tuple[Component, Component], ...]]:
    """The folder, and the rows: pairs of a name and its weight."""
    start = str(shared.settings.adapters)
    with gr.Row(equal_height=True):
        folder = gr.Textbox(start, label="Folder of adapters", scale=5)
        refresh = gr.Button("Refresh", scale=1, min_width=80)
    rows = []
    for number in range(1, ROWS + 1):
        with gr.Row():
            name = gr.Dropdown(_choices(start), value=NO_ADAPTER, label=f"Adapter {number}", filterable=True)
            rows.append((name, gr.Slider(-1.0, 2.0, value=1.0, step=0.05, label="Weight")))
    names = [name for name, _ in rows]
    gr.on([refresh.click, folder.submit], _on_folder, folder, names, api_visibility="private")
    return folder, tuple(rows)


def _settings() -> tuple[Form, Component]:
    """Fields of the request, and the number of images."""
    sampler = gr.Dropdown(list(SAMPLERS), value="DPM++ 2M", label="Sampler")
    with gr.Row():
        count = gr.Number(1, minimum=1, maximum=64, precision=0, label="Images", info="How many are drawn.")
        seed = gr.Textbox(
            label="Seed", placeholder="a new one", info="Image i starts from noise of the seed + i."
        )
        numbers = form(Request, NUMBERS, blank=_default)
    return {"sampler": sampler, "seed": seed, **numbers}, count


def _default(info: FieldInfo) -> str:
    return "the base's own" if info.default is None else str(info.default)


GENERATE = Tab("Generate", _build)
