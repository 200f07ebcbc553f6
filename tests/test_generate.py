"""Images: equal to diffusers' own, the same again from their recipes, and never a black one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from difflora.adapter import Adapter, AdapterMeta, Stack, Weight
from difflora.apply import Mode, applied
from difflora.errors import ConfigError, FitError, GenerationError, RecipeError
from difflora.families import load
from difflora.families.model import Model
from difflora.formats import write
from difflora.generate import (
    DIFFERENCES_KEY,
    Row,
    batches,
    differences,
    draw_rows,
    generate,
    replay,
    resolved,
)
from difflora.grid import Axis, grid
from difflora.kinds import LoRA
from difflora.library import Library
from difflora.recipe import Recipe, RecipeBase, Request, read_recipe, save_png
from difflora.samplers import make_scheduler
from tests.tiny_sdxl import save_tiny_sdxl

# Of diffusers' own runs, to which ours are compared; `generate` itself keeps it quiet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT, NEGATIVE = "a red circle on a blue background", "a green star"
QUICK = Request(prompt=PROMPT, negative=NEGATIVE, seed=7, steps=3, width=64, height=64)


@pytest.fixture(scope="module")
def model(shapes_model: Model) -> Model:
    return shapes_model


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(str(save_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))), device="cpu", dtype="float32")


def random_adapter(model: Model, name: str, *, seed: int, strength: float = 0.6) -> Adapter:
    """A LoRA of rank 2 on attention of UNet and text encoder, strong enough to be seen."""
    source = torch.Generator().manual_seed(seed)
    paths = [p for p in model.shapes() if p.endswith(("attn2.to_k", "attn1.to_v", "self_attn.q_proj"))]
    modules = {}
    for path in paths:
        out, inside = model.shapes()[path]
        down, up = torch.randn(2, inside, generator=source), torch.randn(out, 2, generator=source)
        modules[path] = (LoRA(down * inside**-0.5, up * strength, 1.0),)
    return Adapter(modules, AdapterMeta(name=name, family=model.family.name))


@pytest.fixture(scope="module")
def library(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("halftone", "neon")):
        write(random_adapter(model, name, seed=seed), folder / f"{name}.safetensors")
    return Library(folder)


@pytest.fixture(scope="module")
def stack(library: Library) -> Stack:
    return Stack([(library.get("halftone"), 0.8), (library.get("neon"), Weight(unet=0.5, text=0.25))])


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def distance(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of any channel of any pixel, of 255."""
    return int(np.abs(pixels(a) - pixels(b)).max())


@contextmanager
def sampler(model: Model, name: str) -> Iterator[Any]:
    """The model's own pipeline with one of our samplers."""
    before = model.pipeline.scheduler
    model.pipeline.scheduler = make_scheduler(name, before.config)
    try:
        yield model.pipeline
    finally:
        model.pipeline.scheduler = before


@pytest.mark.parametrize("name", ["DPM++ 2M", "Euler a", "DDIM"])
def test_sd1_equals_diffusers(model: Model, name: str) -> None:
    request = QUICK.model_copy(update={"sampler": name, "batch": 2})
    with sampler(model, name) as pipeline:
        theirs = pipeline(
            [PROMPT] * 2,
            negative_prompt=[NEGATIVE] * 2,
            num_inference_steps=3,
            guidance_scale=4.0,
            guidance_rescale=0.7,
            width=64,
            height=64,
            generator=[torch.Generator().manual_seed(seed) for seed in (7, 8)],
        ).images
    ours = generate(model, request)
    assert [distance(a, b) for a, b in zip(ours, theirs, strict=True)] == [0, 0]


@pytest.mark.parametrize("negative", ["", NEGATIVE])
def test_sdxl_equals_diffusers(sdxl: Model, negative: str) -> None:
    request = QUICK.model_copy(
        update={"negative": negative, "guidance": 6.0, "height": 96, "sampler": "Euler"}
    )
    with sampler(sdxl, "Euler") as pipeline:
        theirs = pipeline(
            PROMPT,
            negative_prompt=negative or None,
            num_inference_steps=3,
            guidance_scale=6.0,
            width=64,
            height=96,
            generator=[torch.Generator().manual_seed(7)],
        ).images
    ours = generate(sdxl, request)
    assert ours[0].size == (64, 96)
    assert distance(ours[0], theirs[0]) <= 1


def test_defaults_are_those_of_the_base(model: Model, sdxl: Model) -> None:
    own = resolved(Request(), model.facts)
    assert (own.width, own.height, own.guidance, own.guidance_rescale) == (128, 128, 4.0, 0.7)
    real = resolved(Request(), type(sdxl.facts)("sdxl", "sdxl", "epsilon", False, 1024, "base"))
    assert (real.width, real.height, real.guidance, real.guidance_rescale) == (1024, 1024, 7.0, 0.0)
    asked = resolved(Request(guidance=3, guidance_rescale=0, width=64), model.facts)
    assert (asked.width, asked.height, asked.guidance, asked.guidance_rescale) == (64, 128, 3.0, 0.0)


def test_image_i_uses_seed_plus_i(model: Model) -> None:
    free = QUICK.model_copy(update={"prompt": ""})  # nothing but the seed says what is drawn
    together = generate(model, free.model_copy(update={"batch": 2}), count=3)
    alone = [generate(model, free.model_copy(update={"seed": seed}))[0] for seed in (7, 8, 9)]
    assert len(together) == 3
    assert max(distance(a, b) for a, b in zip(together, alone, strict=True)) <= 1
    assert min(distance(together[0], other) for other in together[1:]) > 20


@pytest.mark.parametrize("name", ["Euler a", "DPM++ SDE", "DPM++ 2M SDE", "LCM", "DDIM"])
def test_noise_comes_from_the_seeds_alone(model: Model, name: str) -> None:
    request = QUICK.model_copy(update={"sampler": name, "eta": 0.5 if name == "DDIM" else None})
    torch.manual_seed(1)
    first = generate(model, request)[0]
    torch.manual_seed(2)
    again = generate(model, request)[0]
    batched = generate(model, request.model_copy(update={"seed": 6, "batch": 2}))[1]
    assert distance(first, again) == 0
    assert distance(first, batched) <= 1


def test_long_prompts_are_drawn_whole(model: Model) -> None:
    long = ", ".join(["a red circle on a blue background"] * 4)
    image = generate(model, QUICK.model_copy(update={"prompt": f"{long}, a large yellow star"}))[0]
    assert Recipe.from_json(image.info["difflora"]).chunks > 1
    cut = generate(model, QUICK.model_copy(update={"prompt": f"{long}, a small green heart"}))[0]
    assert distance(image, cut) > 5


def test_adapters_act_alike_merged_and_live(model: Model, stack: Stack) -> None:
    plain = generate(model, QUICK)[0]
    merged, live = (generate(model, QUICK, stack=stack, mode=mode)[0] for mode in ("merged", "live"))
    assert distance(plain, merged) > 20
    assert distance(merged, live) <= 2
    assert distance(plain, generate(model, QUICK, stack=stack.with_weights([0.0, 0.0]))[0]) == 0


def test_the_recipe_is_complete(model: Model, stack: Stack) -> None:
    image = generate(model, QUICK.model_copy(update={"batch": 2}), stack=stack, mode="live")[1]
    recipe = Recipe.from_json(image.info["difflora"])
    assert recipe.request == resolved(QUICK.model_copy(update={"batch": 2}), model.facts)
    assert (recipe.seed, recipe.batch_index, recipe.batch_size, recipe.mode) == (8, 1, 2, "live")
    assert (recipe.dtype, recipe.device, recipe.threads) == ("float32", "cpu", torch.get_num_threads())
    assert recipe.base.sha256 and recipe.base == RecipeBase(
        name="shapes-sd",
        sha256=model.facts.sha256,
        prediction_type="v_prediction",
        zero_terminal_snr=True,
    )
    assert set(recipe.versions) == {"difflora", "torch", "diffusers", "transformers"}
    mix = [(one.name, one.unet, one.text) for one in recipe.adapters]
    assert mix == [("halftone", 0.8, 0.8), ("neon", 0.5, 0.25)]
    assert [a.data_hash for a in recipe.adapters] == [adapter.data_hash for adapter, _ in stack]
    assert "<lora:halftone:0.8:0.8>" in image.info["parameters"] and "Seed: 8" in image.info["parameters"]


def test_adapters_at_weight_0_are_not_in_the_recipe(model: Model, stack: Stack) -> None:
    image = generate(model, QUICK.model_copy(update={"steps": 1}), stack=stack.with_weights([0.0, 1.0]))[0]
    assert [one.name for one in Recipe.from_json(image.info["difflora"]).adapters] == ["neon"]


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_replay_gives_the_same_pixels(
    model: Model, stack: Stack, library: Library, tmp_path: Path, mode: Mode
) -> None:
    request = QUICK.model_copy(update={"batch": 3, "sampler": "DPM++ SDE", "prompt": "a (red:1.3) star"})
    image = generate(model, request, stack=stack, mode=mode, count=5)[4]
    save_png(image, tmp_path / "image.png", Recipe.from_json(image.info["difflora"]))
    recipe = read_recipe(tmp_path / "image.png")
    assert (recipe.batch_size, recipe.batch_index) == (2, 1)
    (again,) = replay(recipe, library, model)
    assert again.tobytes() == image.tobytes()
    assert again.info == {key: image.info[key] for key in ("parameters", "difflora")}


def test_seeds_count_on_from_the_first_after_the_last(model: Model, library: Library) -> None:
    request = QUICK.model_copy(update={"batch": 2, "steps": 1, "seed": 2**32 - 1})
    image = generate(model, request)[1]
    recipe = Recipe.from_json(image.info["difflora"])
    assert recipe.seed == 0
    assert replay(recipe, library, model)[0].tobytes() == image.tobytes()


def test_a_stack_is_applied_once_for_all_batches(
    model: Model, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[Mode] = []

    @contextmanager
    def counted(*given: Any, mode: Mode) -> Iterator[Any]:
        entered.append(mode)
        with applied(*given, mode=mode) as mix:
            yield mix

    monkeypatch.setattr(sys.modules["difflora.generate"], "applied", counted)
    before, request = model.checksum(), QUICK.model_copy(update={"batch": 2, "steps": 1})
    drawn = [len(batch) for batch in batches(model, request, stack=stack, mode="merged", count=5)]
    assert drawn == [2, 2, 1] and entered == ["merged"]
    assert model.checksum() == before


def test_replay_without_adapters_needs_no_library(model: Model, stack: Stack) -> None:
    assert len(replay(recipe_of(model), None, model)) == 1
    with pytest.raises(RecipeError, match="'halftone'"):
        replay(recipe_of(model, stack), None, model)


@pytest.mark.parametrize(("field", "value"), [("prediction_type", "epsilon"), ("zero_terminal_snr", False)])
def test_replay_as_another_prediction_is_refused(model: Model, field: str, value: Any) -> None:
    recipe = recipe_of(model)
    other = recipe.model_copy(update={"base": recipe.base.model_copy(update={field: value})})
    with pytest.raises(RecipeError, match=f"made with {value}, loaded as .*--{field.replace('_', '-')}"):
        replay(other, None, model)
    unsaid = recipe.model_copy(update={"base": RecipeBase(sha256=recipe.base.sha256)})
    assert len(replay(unsaid, None, model)) == 1


def test_replay_of_a_cell_names_its_neighbours(model: Model, stack: Stack) -> None:
    axis = Axis("weight", (0.0, 1.0), "halftone")
    request = QUICK.model_copy(update={"steps": 1, "batch": 2})
    cell = grid(model, request, stack=stack, axes=[axis]).cells[0][1]
    (note,) = differences(Recipe.from_json(cell.info["difflora"]), model)
    assert "beside 1 images of other mixes" in note


def test_replay_runs_on_the_recorded_threads(model: Model, library: Library) -> None:
    before = torch.get_num_threads()
    recipe = recipe_of(model).model_copy(update={"threads": before + 1})
    (again,) = replay(recipe, library, model)
    assert Recipe.from_json(again.info["difflora"]).threads == before + 1
    assert torch.get_num_threads() == before


def recipe_of(model: Model, stack: Stack | None = None) -> Recipe:
    request = QUICK.model_copy(update={"steps": 1})
    return Recipe.from_json(generate(model, request, stack=stack or Stack())[0].info["difflora"])


def test_replay_on_another_base_names_all_that_is_missing(model: Model, stack: Stack, tmp_path: Path) -> None:
    recipe = recipe_of(model, stack).model_copy(update={"base": RecipeBase(name="dreamy", sha256="a" * 64)})
    with pytest.raises(RecipeError) as caught:
        replay(recipe, Library(tmp_path), model)
    assert all(word in str(caught.value) for word in ("dreamy", "shapes-sd", "'halftone'", "'neon'"))


def test_replay_with_another_vae_is_refused(model: Model, library: Library, shapes_folder: Path) -> None:
    (image,) = generate(model, QUICK)
    recipe = Recipe.from_json(image.info["difflora"])
    assert recipe.base.vae_sha256 == ""
    other = load(shapes_folder, device="cpu", vae=shapes_folder / "vae")
    with pytest.raises(RecipeError, match="made with the base's own VAE, loaded is VAE"):
        replay(recipe, library, other)
    (drawn,) = generate(other, QUICK)
    (again,) = replay(Recipe.from_json(drawn.info["difflora"]), library, other)
    assert again.tobytes() == drawn.tobytes()


def test_replay_says_what_differs(model: Model, library: Library) -> None:
    recipe = recipe_of(model)
    assert differences(recipe, model) == ()
    other = recipe.model_copy(
        update={
            "versions": {**recipe.versions, "torch": "1.0"},
            "dtype": "float16",
            "base": RecipeBase(name="x"),
        }
    )
    (again,) = replay(other, library, model)
    notes = again.info[DIFFERENCES_KEY].split("\n")
    assert [note.split(":")[0] for note in notes] == ["dtype", "torch", "base"]


def test_an_absurd_weight_is_an_error_not_a_black_image(model: Model, stack: Stack) -> None:
    before = model.checksum()
    with pytest.raises(GenerationError, match="lower"):
        generate(model, QUICK, stack=stack.with_weights([Weight(1e30, 0.0), 0.0]))
    assert model.checksum() == before


def test_progress_counts_all_steps_and_can_abort(model: Model, stack: Stack) -> None:
    seen: list[tuple[int, int]] = []
    generate(model, QUICK, count=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(step, 6) for step in range(1, 7)]

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    before, scheduler = model.checksum(), model.pipeline.scheduler
    with pytest.raises(KeyboardInterrupt):
        generate(model, QUICK, stack=stack, mode="merged", progress=stop)
    assert model.checksum() == before and model.pipeline.scheduler is scheduler


def test_progress_of_a_two_stage_sampler_ends_at_the_total(model: Model) -> None:
    seen: list[int] = []
    request = QUICK.model_copy(update={"sampler": "Heun"})
    generate(model, request, progress=lambda done, total: seen.append(done))
    assert seen[-1] == 3 and seen == sorted(seen)


def test_no_images_is_an_error(model: Model) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        generate(model, QUICK, count=0)


def words(model: Model, word: str, *, seed: int) -> Adapter:
    """An adapter of one word of two vectors."""
    width = model.component("text_encoder").config.hidden_size
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(seed)) / 10
    return Adapter({}, AdapterMeta(name=f"word {word}"), {word: {"text_encoder": vectors}})


@pytest.mark.parametrize("mode", ["merged", "live"])
def test_the_words_of_adapters_are_known_unless_their_text_weight_is_zero(model: Model, mode: Mode) -> None:
    request = QUICK.model_copy(update={"prompt": "a red zig", "negative": "zig"})
    zig = words(model, "zig", seed=1)
    plain, *_ = generate(model, request, mode=mode)
    (taught,) = generate(model, request, stack=Stack([(zig, 0.5)]), mode=mode)
    (stronger,) = generate(model, request, stack=Stack([(zig, Weight(unet=0, text=2))]), mode=mode)
    (absent,) = generate(model, request, stack=Stack([(zig, Weight(unet=1, text=0))]), mode=mode)
    assert distance(taught, plain) > 0
    assert distance(taught, stronger) == 0
    assert distance(absent, plain) == 0


def test_images_of_one_batch_know_the_words_of_their_own_mixes(model: Model) -> None:
    stack = Stack([(words(model, "zig", seed=1), 1.0), (words(model, "Zig", seed=2), 0.0)])
    mixes = [stack, stack.with_weights([0.0, 0.0]), stack.with_weights([0.0, 1.0])]
    settings = resolved(QUICK.model_copy(update={"prompt": "a red zig", "negative": ""}), model.facts)
    with applied(model, stack, mode="live"):
        together = draw_rows(model, [Row(settings, settings.seed, mix) for mix in mixes], mode="live")
    for image, mix in zip(together, mixes, strict=True):
        (alone,) = generate(model, settings, stack=mix, mode="live")
        assert distance(image, alone) <= 1
    assert all(distance(a, b) > 1 for a, b in combinations(together, 2))


def test_a_word_of_another_base_is_refused_before_anything_is_drawn(model: Model) -> None:
    wide = Adapter({}, tokens={"zig": {"text_encoder": torch.ones(1, 768)}})
    with pytest.raises(FitError, match="zig"):
        generate(model, QUICK, stack=Stack([(wide, 1.0)]))
