"""Contact sheets: each cell is the single image of its mix, in its place, under its label."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difflora import sheet
from difflora.adapter import Adapter, AdapterMeta, Stack, Weight
from difflora.errors import ConfigError
from difflora.families import load
from difflora.families.model import Model
from difflora.formats import write
from difflora.generate import generate, replay
from difflora.grid import Axis, Sheet, grid
from difflora.kinds import LoRA
from difflora.library import Library
from difflora.recipe import Recipe, Request
from difflora.sheet import Labels, contact_sheet
from tests.tiny_sdxl import save_tiny_sdxl

REQUEST = Request(prompt="a red circle on a blue background", seed=3, steps=2, batch=4, width=64, height=64)


@pytest.fixture(scope="module")
def model(shapes_model: Model) -> Model:
    return shapes_model


@pytest.fixture(scope="module")
def stack(shapes_model: Model) -> Stack:
    halftone, neon = (random_adapter(shapes_model, name, seed=len(name)) for name in ("halftone", "neon"))
    return Stack([(halftone, 0.8), (neon, Weight(unet=0.5, text=0.25))])


def random_adapter(model: Model, name: str, *, seed: int) -> Adapter:
    source = torch.Generator().manual_seed(seed)
    modules = {}
    for path in model.shapes():
        if path.endswith(("attn2.to_k", "attn1.to_v", "self_attn.q_proj", "resnets.0.conv1")):
            out, *inside = model.shapes()[path]
            down = torch.randn(2, *inside, generator=source) * np.prod(inside) ** -0.5
            up = torch.randn(out, 2, *([1] * (len(inside) - 1)), generator=source)
            modules[path] = (LoRA(down, up, 1.0),)
    return Adapter(modules, AdapterMeta(name=name, family=model.family.name))


def distance(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max())


def single(model: Model, stack: Stack, weights: list[float | Weight], **changes: object) -> Image.Image:
    request = REQUEST.model_copy(update={"batch": 1, **changes})
    return generate(model, request, stack=stack.with_weights(weights), mode="live")[0]


def test_a_blend_of_two_adapters(model: Model, stack: Stack) -> None:
    x = Axis("weight", (0, 0.5, 1.0), adapter="halftone")
    y = Axis("weight", (0, 1.0), adapter="neon")
    drawn = grid(model, REQUEST, stack=stack, axes=(x, y))
    assert [len(row) for row in drawn.cells] == [3, 3]
    for (row, neon), (column, halftone) in product(enumerate((0.0, 1.0)), enumerate((0.0, 0.5, 1.0))):
        expected = single(model, stack, [halftone, Weight(neon, neon * 0.5)])
        assert distance(drawn.cells[row][column], expected) <= 1
    corners = [drawn.cells[0][0], drawn.cells[0][2], drawn.cells[1][0], drawn.cells[1][2]]
    assert min(distance(a, b) for i, a in enumerate(corners) for b in corners[:i]) > 10


def test_a_grid_is_drawn_in_full_batches(model: Model, stack: Stack) -> None:
    rows: list[int] = []
    unet = model.component("unet")
    hook = unet.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[0]))
    try:
        axes = [Axis("weight", (0.0, 0.5, 1.0), adapter=name) for name in ("halftone", "neon")]
        grid(model, REQUEST.model_copy(update={"batch": 9, "steps": 1}), stack=stack, axes=axes)
    finally:
        hook.remove()
    assert rows == [18]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("seed", (3, 11)),
        ("steps", (1, 3)),
        ("guidance", (1.0, 6.0)),
        ("prompt", ("a star", "a red circle BREAK a green star")),
    ],
)
def test_axes_of_the_request(model: Model, stack: Stack, name: str, values: tuple) -> None:
    weights = Axis("weight", (0.25, 1.0), adapter="halftone")
    drawn = grid(model, REQUEST, stack=stack, axes=(Axis(name, values), weights))  # type: ignore[arg-type]
    for (column, value), (row, weight) in product(enumerate(values), enumerate((0.25, 1.0))):
        expected = single(model, stack, [weight, Weight(0.5, 0.25)], **{name: value})
        assert distance(drawn.cells[row][column], expected) <= 1
    assert distance(drawn.cells[0][0], drawn.cells[0][1]) > 5


def test_an_adapter_axis_takes_one_adapter_at_a_time(model: Model, stack: Stack) -> None:
    axes = (Axis("adapter", (None, "neon", "halftone")), Axis("weight", (0.5, 1.0)))
    drawn = grid(model, REQUEST, stack=stack, axes=axes)
    for row, weight in enumerate((0.5, 1.0)):
        expected = [[0, 0], [0, Weight(weight, weight * 0.5)], [weight, 0]]
        for column, weights in enumerate(expected):
            assert distance(drawn.cells[row][column], single(model, stack, weights)) <= 1  # type: ignore[arg-type]


def test_one_axis_gives_one_row(model: Model, stack: Stack) -> None:
    drawn = grid(model, REQUEST, stack=stack, axes=(Axis("seed", (1, 2, 3)),))
    assert [len(row) for row in drawn.cells] == [3]
    assert distance(drawn.cells[0][1], single(model, stack, [0.8, Weight(0.5, 0.25)], seed=2)) <= 1


def test_cells_carry_their_recipes(model: Model, stack: Stack) -> None:
    axes = (Axis("weight", (0.0, 0.5), adapter="halftone"), Axis("seed", (5, 6)))
    drawn = grid(model, REQUEST, stack=stack, axes=axes)
    recipe = Recipe.from_json(drawn.cells[1][1].info["difflora"])
    assert (recipe.seed, recipe.mode, recipe.batch_index, recipe.batch_size) == (6, "live", 3, 4)
    assert [(one.name, one.unet, one.text) for one in recipe.adapters] == [
        ("halftone", 0.5, 0.5),
        ("neon", 0.5, 0.25),
    ]
    assert [one.name for one in Recipe.from_json(drawn.cells[0][0].info["difflora"]).adapters] == ["neon"]


def test_a_cell_can_be_drawn_again_alone(model: Model, stack: Stack, tmp_path: Path) -> None:
    for adapter, _ in stack:
        write(adapter, tmp_path / f"{adapter.meta.name}.safetensors")
    library = Library(tmp_path)
    stored = Stack([(library.get(adapter.meta.name), weight) for adapter, weight in stack])
    axes = [Axis("weight", (0.0, 1.0), adapter=name) for name in ("halftone", "neon")]
    cell = grid(model, REQUEST, stack=stored, axes=axes).cells[0][1]
    (again,) = replay(Recipe.from_json(cell.info["difflora"]), library, model)
    assert distance(cell, again) <= 1


def test_sdxl_rows_have_their_own_mix_too(tmp_path: Path) -> None:
    sdxl = load(str(save_tiny_sdxl(tmp_path)), device="cpu", dtype="float32")
    both = Stack([(random_adapter(sdxl, name, seed=len(name)), 1.0) for name in ("halftone", "neon")])
    axes = (Axis("weight", (0.0, 2.0), adapter="halftone"), Axis("prompt", ("a star", "a red circle")))
    drawn = grid(sdxl, REQUEST, stack=both, axes=axes)
    for (row, prompt), (column, weight) in product(enumerate(axes[1].values), enumerate((0.0, 2.0))):
        expected = single(sdxl, both, [weight, 1.0], prompt=prompt)
        assert distance(drawn.cells[row][column], expected) <= 1
    assert distance(drawn.cells[0][0], drawn.cells[0][1]) > 1


def test_progress_counts_every_batch_and_can_abort(model: Model, stack: Stack) -> None:
    seen: list[tuple[int, int]] = []
    axes = (Axis("steps", (1, 2)), Axis("seed", (1, 2, 3)))
    request = REQUEST.model_copy(update={"batch": 2})
    grid(model, request, stack=stack, axes=axes, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5, 6] and {total for _, total in seen} == {6}

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = model.checksum()
    with pytest.raises(KeyboardInterrupt):
        grid(model, request, stack=stack, axes=axes, progress=stop)
    assert model.checksum() == before


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ((), "got 0"),
        ((Axis("seed", (1,)),) * 3, "got 3"),
        ((Axis("seed", (1,)),) * 2, "two different ones"),
        ((Axis("weight", (1.0,), adapter="neon"),) * 2, "two different adapters"),
        ((Axis("weight", (1.0,), adapter="neon"), Axis("weight", (1.0,))), "two different adapters"),
        ((Axis("weight", (1.0,), adapter="sketch"),), "no adapters of the stack are called 'sketch'"),
        ((Axis("adapter", ("sketch",)),), "it has halftone, neon"),
        ((Axis("seed", ()),), "has no values"),
        ((Axis("seed", (0.5,)),), "0.5 is not a value"),
        ((Axis("seed", (1,), adapter="neon"),), "only a weight axis"),
        ((Axis("colour", (1,)),), "no such axis"),  # type: ignore[arg-type]
        ((Axis("steps", (0,)),), "steps"),
    ],
)
def test_axes_that_cannot_be_drawn(model: Model, stack: Stack, axes: tuple[Axis, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        grid(model, REQUEST, stack=stack, axes=axes)


def test_all_problems_come_at_once(model: Model, stack: Stack) -> None:
    with pytest.raises(ConfigError) as caught:
        grid(model, REQUEST, stack=stack, axes=(Axis("seed", ()), Axis("weight", (1.0,), adapter="sketch")))
    assert "has no values" in str(caught.value) and "sketch" in str(caught.value)


# --- the sheet ---


def flat(colour: tuple[int, int, int], size: tuple[int, int] = (128, 96)) -> Image.Image:
    return Image.new("RGB", size, colour)


COLOURS = [[(200, 0, 0), (0, 200, 0), (0, 0, 200)], [(200, 200, 0), (0, 200, 200), (200, 0, 200)]]


def found(image: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of all pixels of one colour."""
    rows, columns = np.nonzero((np.asarray(image) == colour).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, tuple[float, ...]]]]:
    """Every text that is written on a sheet, with its box, in order."""
    texts: list[tuple[str, tuple[float, ...]]] = []
    real = sheet.ImageDraw.ImageDraw.multiline_text

    def record(pen, xy, text, fill, font, anchor=None, align="left"):  # type: ignore[no-untyped-def]
        if text:
            texts.append((text, pen.multiline_textbbox(xy, text, font, anchor=anchor, align=align)))
        real(pen, xy, text, fill, font, anchor=anchor, align=align)

    monkeypatch.setattr(sheet.ImageDraw.ImageDraw, "multiline_text", record)
    yield texts


LONG = "a very long prompt about a large red circle on a blue background and more of the same " * 3


def test_pictures_and_labels_stand_in_order(written: list[tuple[str, tuple[float, ...]]]) -> None:
    pictures = [[flat(colour) for colour in row] for row in COLOURS]
    columns = Labels("halftone weight", ("halftone 0", "halftone 0.5", LONG))
    rows = Labels("neon weight", ("neon 0", LONG))
    image = contact_sheet(pictures, columns=columns, rows=rows, heading=LONG)
    boxes = [[found(image, colour) for colour in row] for row in COLOURS]
    assert all(box[2] - box[0] == 128 and box[3] - box[1] == 96 for row in boxes for box in row)
    texts = {text.replace("\n", " "): box for text, box in reversed(written)}
    for label, box in zip(columns.values[:2], boxes[0], strict=False):
        left, _, right, bottom = texts[label]
        assert box[0] <= left and right <= box[2] and bottom <= box[1]
    assert texts["neon 0"][2] <= boxes[0][0][0] and boxes[0][0][1] <= texts["neon 0"][1] <= boxes[0][0][3]


def test_no_text_is_cut_or_touches_another(written: list[tuple[str, tuple[float, ...]]]) -> None:
    pictures = [[flat(colour) for colour in row] for row in COLOURS]
    labels = Labels("prompt", (LONG, "a_name_without_any_spaces_that_is_wider_than_its_picture", LONG))
    image = contact_sheet(pictures, columns=labels, rows=Labels("adapter", (LONG, LONG)), heading=LONG)
    boxes = [box for _, box in written]
    boxes += [found(image, colour) for row in COLOURS for colour in row]
    assert len(written) == 8
    for left, top, right, bottom in boxes:
        assert left >= 0 and top >= 0 and right <= image.width and bottom <= image.height
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)


def test_a_sheet_shows_its_cells_pixel_for_pixel(model: Model, stack: Stack) -> None:
    drawn: Sheet = grid(model, REQUEST, stack=stack, axes=(Axis("seed", (1, 2)),))
    whole = np.asarray(drawn.image)
    for cell in drawn.cells[0]:
        pixels = np.asarray(cell)
        places = np.lib.stride_tricks.sliding_window_view(whole, pixels.shape)[:, :, 0]
        starts = np.argwhere((places[:, :, 0, 0] == pixels[0, 0]).all(axis=2))
        assert any(np.array_equal(places[row, column], pixels) for row, column in starts)
