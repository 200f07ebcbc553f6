"""Images from a request and a weighted stack of adapters, each with its recipe; and again from a recipe."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from PIL import Image

from difflora.adapter import Adapter, Stack, Weight
from difflora.apply import Mode, applied, mode_of
from difflora.errors import ConfigError, LibraryError, RecipeError, listing
from difflora.recipe import Recipe, RecipeAdapter, RecipeBase, Request, png_text
from difflora.render import Batch, StepHook, Watch, chunks_needed, draw

if TYPE_CHECKING:
    from difflora.families.model import BaseFacts, Model
    from difflora.library import Library

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all); raising from it aborts, and the base is put back."""

NO_ADAPTERS = Stack()
SEEDS = 2**32
"""How many seeds there are: torch's generator on a CPU looks at 32 bits."""
DIFFERENCES_KEY = "difflora_differences"
_RECORDED_VERSIONS = ("difflora", "torch", "diffusers", "transformers")


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One image of a batch: a resolved request, the seed of this image, and its mix."""

    request: Request
    seed: int
    stack: Stack


def generate(
    model: Model,
    request: Request,
    *,
    stack: Stack = NO_ADAPTERS,
    mode: Mode | None = None,
    count: int | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> list[Image.Image]:
    """`count` images (None: one batch), each with its recipe in `info["difflora"]` and `info["parameters"]`.

    Image i is drawn from seed + i, `request.batch` images at once. Fields of the request that are None take
    the base's own values (`resolved`). `mode` is how the stack is applied; None leaves it to `applied`.
    `watch` is shown what a batch's finished latents will be, as foreseen at each step (`LatentColours` makes
    pictures of them).
    The same call gives the same bytes on the same machine with the same versions, dtype, batch and thread
    count. Raises FitError or ApplyError as `applied` does, PromptError, ConfigError, GenerationError on NaN.
    """
    drawn = batches(model, request, stack=stack, mode=mode, count=count, progress=progress, watch=watch)
    return [image for batch in drawn for image in batch]


def batches(
    model: Model,
    request: Request,
    *,
    stack: Stack = NO_ADAPTERS,
    mode: Mode | None = None,
    count: int | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Iterator[list[Image.Image]]:
    """`generate`, batch by batch as they are drawn; the stack is applied until the last one was taken."""
    if count is not None and count < 1:
        raise ConfigError(f"count={count}: expected at least 1 image")
    settings = resolved(request, model.facts)
    rows = [Row(settings, (settings.seed + i) % SEEDS, stack) for i in range(count or settings.batch)]
    starts = range(0, len(rows), settings.batch)
    total = settings.steps * len(starts)
    with applied(model, stack, mode=mode) as mix:
        for number, start in enumerate(starts):
            hook = step_hook(progress, done=number * settings.steps, total=total)
            batch = rows[start : start + settings.batch]
            yield draw_rows(model, batch, mode=mode_of(mix), on_step=hook, watch=watch)


def replay(
    recipe: Recipe, library: Library | None, model: Model, *, progress: Progress | None = None
) -> list[Image.Image]:
    """The image of a recipe drawn again: [image], with its new recipe in `info`. Without adapters in it no
    library is needed.

    On the same machine, versions and dtype the pixels are the same: the whole batch is drawn as it was, in
    the recipe's mode and on its number of threads, and the image is taken from its place. What differs from
    the recipe (`differences`) is written into `info["difflora_differences"]`, one a line; the key is absent
    when nothing does. An image of a grid, whose neighbours had other mixes, is within 1 of 255.

    Raises RecipeError naming all of it if the base is another one or adapters are not in the library.
    """
    stack = _recorded_stack(recipe, library, problems := _base_problems(recipe, model))
    if problems:
        raise RecipeError(f"this recipe cannot be replayed here:\n{listing(problems, limit=20)}")
    settings = resolved(recipe.request, model.facts)
    # Those of a batch count on; neighbours in a grid may have had any.
    seeds = [(recipe.seed + place - recipe.batch_index) % SEEDS for place in range(recipe.batch_size)]
    notes = differences(recipe, model)
    hook = step_hook(progress, done=0, total=settings.steps)
    with _threads(recipe.threads), applied(model, stack, mode=recipe.mode):
        rows = [Row(settings, seed, stack) for seed in seeds]
        drawn = draw_rows(model, rows, mode=recipe.mode, chunks=recipe.chunks, on_step=hook)
    image = drawn[recipe.batch_index]
    if notes:
        image.info[DIFFERENCES_KEY] = "\n".join(notes)
    return [image]


def resolved(request: Request, facts: BaseFacts) -> Request:
    """The request with the base's own values in place of None.

    Size: the resolution the base was trained at. Guidance 7; 4 for small bases such as shapes-sd. Guidance
    rescale 0.7 where the base has zero terminal SNR (Lin et al. 2023, section 3.4), else 0.
    """
    own = {
        "guidance": 4.0 if facts.variant == "shapes" else 7.0,
        "guidance_rescale": 0.7 if facts.zero_terminal_snr else 0.0,
        "width": facts.resolution,
        "height": facts.resolution,
    }
    missing = {name: value for name, value in own.items() if getattr(request, name) is None}
    return request.model_copy(update=missing)


def draw_rows(
    model: Model,
    rows: Sequence[Row],
    *,
    mode: Mode,
    own_mix: bool = False,
    chunks: int = 1,
    on_step: StepHook | None = None,
    watch: Watch | None = None,
) -> list[Image.Image]:
    """The images of one batch, each with its recipe; the rows' mixes must be applied to the model already.

    The requests of the rows may differ in their prompts only; `own_mix`: whether the mixes differ.
    """
    batch = batch_of(rows, chunks=chunks)
    shared = chunks_needed(model, batch)
    images = draw(model, batch_of(rows, chunks=shared), on_step=on_step, watch=watch)
    for index, (image, row) in enumerate(zip(images, rows, strict=True)):
        recipe = Recipe(
            request=row.request,
            adapters=_recorded(row.stack),
            base=_recorded_base(model.facts),
            mode=mode,
            dtype=_dtype(model),
            device=model.device.type,
            processor=_processor(model.device),
            threads=torch.get_num_threads(),
            batch_size=len(rows),
            batch_index=index,
            own_mix=own_mix,
            chunks=shared,
            seed=row.seed,
            versions=_versions(),
        )
        image.info.update(png_text(recipe))
    return images


def batch_of(rows: Sequence[Row], *, chunks: int = 1) -> Batch:
    """The rows as one batch, in at least `chunks` chunks of text."""
    request = rows[0].request
    for name in ("guidance", "guidance_rescale", "width", "height"):
        assert getattr(request, name) is not None, f"{name} is filled in by `resolved`"
    return Batch(
        prompts=tuple(row.request.prompt for row in rows),
        seeds=tuple(row.seed for row in rows),
        tokens=tuple(row.stack.tokens() for row in rows),
        negative=request.negative,
        steps=request.steps,
        guidance=request.guidance or 0.0,
        guidance_rescale=request.guidance_rescale or 0.0,
        sampler=request.sampler,
        width=request.width or 0,
        height=request.height or 0,
        clip_skip=request.clip_skip,
        eta=request.eta or 0.0,
        chunks=chunks,
    )


def step_hook(progress: Progress | None, *, done: int, total: int) -> StepHook | None:
    """Reports the steps of one batch as part of a longer work, of which `done` steps came before."""
    return None if progress is None else lambda step, steps: progress(done + step, total)


def differences(recipe: Recipe, model: Model) -> tuple[str, ...]:
    """What is not as it was when the image was made, so that its pixels may differ; () if nothing is
    known.
    """
    here = {"dtype": _dtype(model), "device": model.device.type, **_versions()}
    then = {"dtype": recipe.dtype, "device": recipe.device, **recipe.versions}
    if recipe.processor:
        here["processor"], then["processor"] = _processor(model.device), recipe.processor
    notes = [
        f"{name}: {then[name]} then, {now} now" for name, now in here.items() if then.get(name, now) != now
    ]
    if not (recipe.base.sha256 and model.facts.sha256):
        notes.append(f"base: {recipe.base.name!r} then, {model.facts.name!r} now, not compared by hash")
    if recipe.own_mix and recipe.batch_size > 1:
        notes.append(
            f"batch: drawn in a sheet, beside {recipe.batch_size - 1} images of other mixes; sums are "
            "rounded otherwise"
        )
    return tuple(notes)


def _base_problems(recipe: Recipe, model: Model) -> list[str]:
    then, now = recipe.base, model.facts
    if then.sha256 and now.sha256 and then.sha256 != now.sha256:
        return [
            f"base: made with {then.name!r} (sha256 {then.sha256[:12]}), loaded is {now.name!r} "
            f"({now.sha256[:12]}); load the base it was made with"
        ]
    if then.vae_sha256 != now.vae_sha256:
        made, here = (
            f"VAE {sha256[:12]}" if sha256 else "the base's own VAE"
            for sha256 in (then.vae_sha256, now.vae_sha256)
        )
        return [f"vae: made with {made}, loaded is {here}; load the same one (--vae)"]
    return [
        f"{words}: made with {made}, loaded as {here}; load it so (--{words.replace(' ', '-')})"
        for words, made, here in (
            ("prediction type", then.prediction_type, now.prediction_type),
            ("zero terminal snr", then.zero_terminal_snr, now.zero_terminal_snr),
        )
        if made not in ("", None, here)
    ]


def _recorded_base(facts: BaseFacts) -> RecipeBase:
    if facts.prediction_type not in ("epsilon", "v_prediction"):
        raise AssertionError(f"a base that predicts {facts.prediction_type!r} cannot have been loaded")
    return RecipeBase(
        name=facts.name,
        sha256=facts.sha256,
        vae_sha256=facts.vae_sha256,
        prediction_type=facts.prediction_type,
        zero_terminal_snr=facts.zero_terminal_snr,
    )


def _recorded_stack(recipe: Recipe, library: Library | None, problems: list[str]) -> Stack:
    """The recipe's mix; what the library does not have is added to `problems`."""
    entries: list[tuple[Adapter, Weight]] = []
    for one in recipe.adapters:
        try:
            if library is None:
                raise LibraryError("there is no library to find it in")
            entries.append((library.by_hash(one.data_hash), Weight(one.unet, one.text)))
        except LibraryError as error:
            problems.append(f"adapter {one.name!r}: {error}")
    return Stack(entries)


def _recorded(stack: Stack) -> tuple[RecipeAdapter, ...]:
    """The adapters that act: one at weight 0 equals one that is absent."""
    return tuple(
        RecipeAdapter(name=adapter.meta.name, data_hash=adapter.data_hash, unet=weight.unet, text=weight.text)
        for adapter, weight in stack
        if weight != Weight(0.0, 0.0)
    )


def _processor(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _dtype(model: Model) -> str:
    return str(model.dtype).removeprefix("torch.")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _RECORDED_VERSIONS}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch on `count` threads for the length of a `with` block: their number decides how sums are
    rounded.
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
