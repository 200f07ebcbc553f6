"""Contact sheets over any two of adapter weight, adapter, seed, steps, guidance and prompt.

Cells that differ in adapters, weights, seeds or prompts are rendered as one batch, each row with its own
live mix: a 5×5 blend of two adapters is one model, one attachment and 25 rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from PIL import Image

from difflora.adapter import Stack, Weight
from difflora.apply import Live, applied
from difflora.errors import ConfigError, listing
from difflora.generate import Progress, Row, batch_of, draw_rows, resolved, step_hook
from difflora.recipe import Request
from difflora.render import Watch, chunks_needed
from difflora.sheet import Labels, contact_sheet

if TYPE_CHECKING:
    from difflora.families.model import Model

AxisName = Literal["weight", "adapter", "seed", "steps", "guidance", "prompt"]
AxisValue = float | int | str | None
_TYPES: Mapping[str, tuple[type, ...]] = {
    "weight": (int, float),
    "adapter": (str, type(None)),
    "seed": (int,),
    "steps": (int,),
    "guidance": (int, float),
    "prompt": (str,),
}


@dataclass(frozen=True, slots=True)
class Axis:
    """What changes along one edge of a sheet.

    weight     the weight of `adapter` (of every adapter of the stack if none is named)
    adapter    which adapter of the stack acts, alone, at its own weight; None for none of them
    seed, steps, guidance, prompt     that field of the request
    """

    name: AxisName
    values: tuple[AxisValue, ...]
    adapter: str | None = None

    @property
    def title(self) -> str:
        """The axis in words, for the edge of the sheet."""
        return f"{self.adapter} weight" if self.name == "weight" and self.adapter else self.name

    def label(self, value: AxisValue) -> str:
        """One value in words, for its row or column."""
        if value is None:
            return "no adapter"
        number = f"{value:g}" if isinstance(value, float) else str(value)
        return f"{self.adapter} {number}" if self.name == "weight" and self.adapter else number


@dataclass(frozen=True, slots=True)
class Sheet:
    """A contact sheet: the labelled `image`, and `cells[row][column]`, each with its recipe in `info`."""

    image: Image.Image
    cells: tuple[tuple[Image.Image, ...], ...]


def grid(
    model: Model,
    request: Request,
    *,
    stack: Stack,
    axes: Sequence[Axis],
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Sheet:
    """Draws every combination of the axes' values: axes[0] along the columns, axes[1] (if given) along the
    rows.

    What no axis changes comes from `request` and `stack`. `request.batch` cells are drawn at once where
    they share steps, guidance and the number of text chunks. The stack is live: a cell equals a single
    image of the same mix in live mode but for the rounding that the batch size brings (at most 1 of 255 in
    float32). `progress(done, total)` counts steps; raising from it aborts. `watch` is shown what the
    latents of the cells that are drawn at once will be.

    Raises ConfigError naming everything that is wrong with the axes, ApplyError and FitError as `applied`
    does.
    """
    _check(axes, stack)
    settings = resolved(request, model.facts)
    across, down = axes[0], axes[1] if len(axes) == 2 else None
    wanted = [
        _cell(settings, stack, (across, x), y)
        for y in ([None] if down is None else [(down, value) for value in down.values])
        for x in across.values
    ]
    drawn = _draw_all(model, wanted, stack=stack, size=settings.batch, progress=progress, watch=watch)
    width = len(across.values)
    cells = tuple(tuple(drawn[start : start + width]) for start in range(0, len(drawn), width))
    image = contact_sheet(
        cells,
        columns=_labels(across),
        rows=None if down is None else _labels(down),
        heading="" if any(axis.name == "prompt" for axis in axes) else settings.prompt,
    )
    return Sheet(image, cells)


def _labels(axis: Axis) -> Labels:
    return Labels(axis.title, tuple(axis.label(value) for value in axis.values))


def _check(axes: Sequence[Axis], stack: Stack) -> None:
    names = [adapter.meta.name for adapter, _ in stack]
    problems = [] if len(axes) in (1, 2) else [f"a sheet has one axis or two, got {len(axes)}"]
    for axis in axes:
        problems += [f"axis {axis.name!r}: {problem}" for problem in _axis_problems(axis, names)]
    if len({axis.name for axis in axes}) < len(axes):
        dialled = [axis.adapter for axis in axes]
        if axes[0].name != "weight":
            problems.append(f"both axes are {axes[0].name!r}; choose two different ones")
        elif None in dialled or dialled[0] == dialled[1]:
            problems.append("two weight axes must name two different adapters")
    if problems:
        raise ConfigError(f"this sheet cannot be drawn:\n{listing(problems, limit=20)}")


def _axis_problems(axis: Axis, names: Sequence[str]) -> Iterator[str]:
    if axis.name not in get_args(AxisName):
        yield f"no such axis; there are {', '.join(get_args(AxisName))}"
        return
    if not axis.values:
        yield "has no values"
    if axis.name in ("weight", "adapter") and not names:
        yield "needs adapters, and the stack has none"
    wanted = [axis.adapter] if axis.adapter is not None else []
    if axis.name == "adapter":
        wanted += [value for value in axis.values if isinstance(value, str)]
    for name in wanted:
        if names.count(name) != 1:
            found = names.count(name) or "no"
            yield f"{found} adapters of the stack are called {name!r}; it has {', '.join(names)}"
    if axis.adapter is not None and axis.name != "weight":
        yield "only a weight axis names an adapter"
    for value in axis.values:
        if not isinstance(value, _TYPES[axis.name]) or isinstance(value, bool):
            yield f"{value!r} is not a value for it"


def _cell(request: Request, stack: Stack, x: tuple[Axis, AxisValue], y: tuple[Axis, AxisValue] | None) -> Row:
    choice = [x] if y is None else [x, y]
    fields = {axis.name: value for axis, value in choice if axis.name not in ("weight", "adapter")}
    weights = [weight for _, weight in stack]
    names = [adapter.meta.name for adapter, _ in stack]
    # Weights first: an adapter axis then chooses among adapters at the weight of the other axis.
    for axis, value in sorted(choice, key=lambda pair: pair[0].name != "weight"):
        if axis.name == "weight" and isinstance(value, int | float):
            weights = [
                _dialled(weight, float(value)) if axis.adapter in (None, name) else weight
                for weight, name in zip(weights, names, strict=True)
            ]
        elif axis.name == "adapter":
            weights = [
                weight if name == value else Weight(0.0, 0.0)
                for weight, name in zip(weights, names, strict=True)
            ]
    settings = Request.model_validate({**request.model_dump(), **fields})
    return Row(settings, settings.seed, stack.with_weights(weights))


def _dialled(weight: Weight, value: float) -> Weight:
    """`value` for the UNet, and for the text encoders in the proportion that they had."""
    return Weight(value, value * (weight.text / weight.unet) if weight.unet else value)


def _runs(model: Model, cells: Sequence[Row], *, size: int) -> list[list[int]]:
    """The indices of the cells that are drawn at once: at most `size`, alike in all that a batch shares.

    The number of text chunks is shared too: beside a longer prompt, a short one would give another image.
    """
    groups: dict[tuple[int, float | None, int], list[int]] = {}
    for index, cell in enumerate(cells):
        chunks = chunks_needed(model, batch_of([cell]))
        groups.setdefault((cell.request.steps, cell.request.guidance, chunks), []).append(index)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


def _draw_all(
    model: Model,
    cells: Sequence[Row],
    *,
    stack: Stack,
    size: int,
    progress: Progress | None,
    watch: Watch | None,
) -> list[Image.Image]:
    """The pictures of `cells`, in their order."""
    drawn: dict[int, Image.Image] = {}
    runs = _runs(model, cells, size=size)
    total, done = sum(cells[run[0]].request.steps for run in runs), 0
    with applied(model, stack, mode="live") as mix:
        assert isinstance(mix, Live)
        for run in runs:
            rows = [cells[index] for index in run]
            mix.set_image_weights([[weight for _, weight in row.stack] for row in rows])
            hook = step_hook(progress, done=done, total=total)
            images = draw_rows(model, rows, mode="live", own_mix=True, on_step=hook, watch=watch)
            drawn |= zip(run, images, strict=True)
            done += rows[0].request.steps
    return [drawn[index] for index in range(len(cells))]
