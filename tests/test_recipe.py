"""Requests, recipes and their texts in PNGs: exact round trips, A1111's conventions, and plain errors."""

import contextlib
import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydantic import ValidationError

from difflora.errors import ConfigError, RecipeError
from difflora.prompts import LoraTag
from difflora.recipe import (
    Recipe,
    RecipeAdapter,
    RecipeBase,
    Request,
    parse_parameters,
    png_text,
    read_parameters,
    read_recipe,
    save_png,
)
from difflora.samplers import SAMPLERS

HASH_A, HASH_B = "0123456789ab" + "c" * 52, "f" * 64
RECIPE = Recipe(
    request=Request(
        prompt="a (red:1.2) cat, masterpiece",
        negative="blurry: yes",
        seed=7,
        steps=20,
        guidance=7.0,
        sampler="DPM++ 2M Karras",
        width=512,
        height=768,
        clip_skip=2,
    ),
    adapters=(
        RecipeAdapter(name="halftone", data_hash=HASH_A, unet=0.7, text=0.7),
        RecipeAdapter(name="odd: name, v2", data_hash=HASH_B, unet=-0.25, text=1e-7),
    ),
    base=RecipeBase(name="v1-5-pruned", sha256="6ce0161689" + "0" * 54),
    seed=8,
    batch_size=2,
    batch_index=1,
    threads=2,
    versions={"torch": "2.13.0"},
)


def test_the_text_is_what_a1111_writes():
    lines = png_text(RECIPE)["parameters"].split("\n")
    assert lines[0] == (
        "a (red:1.2) cat, masterpiece <lora:halftone:0.7:0.7> <lora:odd_ name_ v2:0.0000001:-0.25>"
    )
    assert lines[1] == "Negative prompt: blurry: yes"
    assert re.sub(r"difflora \S+$", "difflora X", lines[2]) == (
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 8, Size: 512x768, "
        "Model hash: 6ce0161689, Model: v1-5-pruned, Clip skip: 2, RNG: CPU, "
        f'Lora hashes: "halftone: 0123456789ab, odd_ name_ v2: {HASH_B[:12]}", Version: difflora X'
    )
    assert len(lines) == 3


def test_what_has_its_default_is_left_out():
    text = png_text(Recipe(request=Request(prompt="cat")))["parameters"]
    assert text.split("\n")[1] == "Negative prompt: "  # ComfyUI reads nothing without it
    assert "Clip skip" not in text
    assert "Lora" not in text
    assert "None" not in text


floats = st.floats(-1e300, 1e300, allow_nan=False)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]))
edges = st.none() | st.integers(8, 1024).map(lambda n: 8 * n)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
requests = st.builds(
    Request,
    prompt=words,
    negative=words,
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(1, 50),
    guidance=st.none() | st.floats(0, 100),
    guidance_rescale=st.none() | st.floats(0, 1),
    sampler=st.sampled_from(sorted(SAMPLERS)),
    width=edges,
    height=edges,
    batch=st.integers(1, 64),
    clip_skip=st.integers(1, 12),
    eta=st.none() | st.floats(0, 1),
)
adapters = st.builds(RecipeAdapter, name=words, data_hash=hashes, unet=floats, text=floats)
recipes = st.builds(
    Recipe,
    request=requests,
    adapters=st.lists(adapters, max_size=3).map(tuple),
    base=st.builds(RecipeBase, name=words, sha256=st.just("") | hashes),
    mode=st.sampled_from(["merged", "live"]),
    seed=st.integers(0, 2**64 - 1),
    versions=st.dictionaries(words, words, max_size=2),
)


@given(recipes)
def test_json_round_trip_is_exact(recipe):
    text = recipe.to_json()
    again = Recipe.from_json(text)
    assert again == recipe
    assert again.to_json() == text
    assert text.isascii()


# A prompt that A1111's text can hold: no tags, no line that reads as another part of it, no outer spaces.
plain = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="<\\")).map(
    str.strip
)


@given(requests, plain, plain, st.lists(st.tuples(floats, floats), max_size=2))
def test_a1111_text_round_trip(request, prompt, negative, pairs):
    request = request.model_copy(update={"prompt": prompt, "negative": negative, "batch": 1})
    mix = tuple(
        RecipeAdapter(name=f"adapter {i}", data_hash=HASH_A, unet=unet, text=text)
        for i, (unet, text) in enumerate(pairs)
    )
    recipe = Recipe(request=request, adapters=mix, seed=request.seed)
    read = parse_parameters(png_text(recipe)["parameters"])
    expected = {**request.model_dump(), "prompt": prompt, "negative": negative}
    expected["eta"], expected["guidance_rescale"] = request.eta or None, request.guidance_rescale or None
    if not (request.width and request.height):
        expected["width"] = expected["height"] = None
    assert read.request.model_dump() == expected
    assert read.tags == tuple(LoraTag(a.name, unet=a.unet, text=a.text) for a in mix)
    assert read.lora_hashes == {a.name: HASH_A[:12] for a in mix}
    assert read.unused == {}


FOREIGN = """masterpiece, <lora:add_detail:0.6> a castle
BREAK on a hill
Negative prompt: lowres
bad hands
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 5.5, Seed: 4294967295, Size: 512x768, \
Model hash: 9aba26abdf, Model: dreamshaper_8, Clip skip: 2, Denoising strength: 0.45, \
Hires prompt: "a, b: \\"c\\"", Lora hashes: "add_detail: 7c6bad76eb54", Version: v1.6.0"""


def test_a_text_of_a1111_is_read():
    read = parse_parameters(FOREIGN)
    assert read.request == Request(
        prompt="masterpiece,  a castle\nBREAK on a hill",
        negative="lowres\nbad hands",
        steps=28,
        sampler="DPM++ 2M Karras",
        guidance=5.5,
        seed=4294967295,
        width=512,
        height=768,
        clip_skip=2,
    )
    assert read.tags == (LoraTag("add_detail", 0.6, 0.6),)
    assert read.lora_hashes == {"add_detail": "7c6bad76eb54"}
    assert (read.model, read.model_hash) == ("dreamshaper_8", "9aba26abdf")
    assert read.unused == {"Denoising strength": "0.45", "Hires prompt": 'a, b: "c"'}


@pytest.mark.parametrize(
    ("sampler", "ours"),
    [
        ("Sampler: Euler a, Schedule type: Automatic", "Euler a"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "DPM++ 2M Karras"),
        ("Sampler: DPM++ SDE, Schedule type: Karras", "DPM++ SDE Karras"),
        ("Sampler: PLMS", "PLMS"),
    ],
)
def test_sampler_and_schedule(sampler, ours):
    assert parse_parameters(f"cat\nSteps: 20, {sampler}, CFG scale: 7").request.sampler == ours


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("just a prompt", ["no line of parameters"]),
        ("", ["no line of parameters"]),
        ('{"sui_image_params": {"prompt": "cat"}}', ["no line of parameters"]),
        ("cat\nSteps: 20, Sampler: Euler, Size: 512, Seed: x", ["Size", "Seed"]),
        ("cat\nSteps: 20, Sampler: Euler, Size: 511x512", ["multiple of 8"]),
        ("cat\nSteps: 0, Sampler: Euler, CFG scale: nan", ["steps", "guidance"]),
    ],
)
def test_texts_that_cannot_be_used(text, words):
    with pytest.raises(RecipeError) as caught:
        parse_parameters(text)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("sampler", "ours", "unused"),
    [
        ("Sampler: Euler a, Schedule type: Karras", "Euler a", {"Schedule type": "Karras"}),
        ("Sampler: DPM++ 2M, Schedule type: SGM Uniform", "DPM++ 2M", {"Schedule type": "SGM Uniform"}),
        ("Sampler: DPM++ 2S a", "DPM++ 2M", {"Sampler": "DPM++ 2S a"}),
        ("Sampler: Restart, Schedule type: Karras", "DPM++ 2M", {"Sampler": "Restart Karras"}),
    ],
)
def test_a_sampler_that_is_not_here_is_told_and_the_rest_is_read(sampler, ours, unused):
    read = parse_parameters(f"cat\nSteps: 20, {sampler}, CFG scale: 5")
    assert (read.request.sampler, read.request.guidance, read.request.prompt) == (ours, 5, "cat")
    assert read.unused == unused


def test_what_cannot_be_read_of_a_tag_is_told_and_the_rest_is_read():
    text = "a <lora:b:0.8:lbw=ALL> cat <hypernet:h:1> <lora:c:0.5@2>\nSteps: 20, Sampler: Euler, Seed: 1"
    read = parse_parameters(text)
    assert read.request.prompt == "a  cat"
    assert read.tags == (LoraTag("b", 0.8, 0.8), LoraTag("c"))
    assert read.unused == {"in tags": "<lora:b:0.8:lbw=ALL> <hypernet:h:1> <lora:c:0.5@2>"}


@given(st.text(), st.text())
def test_any_text_is_read_or_refused(text, line):
    for candidate in (text, f"{text}\nSteps: 20, Sampler: Euler, Seed: 1, {line}"):
        with contextlib.suppress(RecipeError):
            parse_parameters(candidate)


def test_png_round_trip(tmp_path):
    path = tmp_path / "image.png"
    image = Image.linear_gradient("L").convert("RGB")
    recipe = RECIPE.model_copy(
        update={"request": RECIPE.request.model_copy(update={"prompt": "猫 🐈\nnew line"})}
    )
    save_png(image, path, recipe)
    assert read_recipe(path) == recipe
    assert read_parameters(path).request.prompt == "猫 🐈\nnew line"
    with Image.open(path) as again:
        assert again.tobytes() == image.tobytes()
    before = path.read_bytes()
    save_png(image, path, recipe)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["image.png"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    path.write_bytes(b"before")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RecipeError, match="No space left"):
        save_png(Image.new("RGB", (8, 8)), path, RECIPE)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["image.png"]


def png_with(path, **texts):
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


FOREIGN_PNGS = [
    ({}, "no text at all"),
    ({"prompt": "{}", "workflow": "{}"}, "ComfyUI"),
    ({"invokeai_metadata": "{}"}, "InvokeAI"),
    ({"Software": "Paint"}, "Software"),
    ({"parameters": FOREIGN}, "A1111"),
    ({"difflora": "not json"}, "not JSON"),
    ({"difflora": "[" * 100_000}, "not JSON"),
    ({"difflora": "[1]"}, "not a JSON object"),
    ({"difflora": '{"version": 9}'}, "version 9"),
    ({"difflora": '{"version": 1}'}, "request"),
    ({"difflora": '{"version": 1, "request": {"steps": 0, "sampler": "x"}}'}, "steps"),
]


@pytest.mark.parametrize(("texts", "words"), FOREIGN_PNGS, ids=[words for _, words in FOREIGN_PNGS])
def test_a_foreign_png_says_what_it_is(tmp_path, texts, words):
    png_with(tmp_path / "a.png", **texts)
    with pytest.raises(RecipeError, match=re.escape(words)) as caught:
        read_recipe(tmp_path / "a.png")
    assert "a.png" in str(caught.value)


def test_files_that_are_no_png(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    save_png(Image.effect_noise((64, 64), 50), tmp_path / "whole.png", RECIPE)
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-1000])
    for name, words in [
        ("a.jpg", "JPEG"),
        ("b.png", "cannot be read as an image"),
        ("cut.png", "cannot be read as an image"),
        ("none.png", "does not exist"),
        (".", "cannot be read as an image"),
    ]:
        for read in (read_recipe, read_parameters):
            with pytest.raises(RecipeError, match=words):
                read(tmp_path / name)


def test_every_wrong_field_is_named():
    with pytest.raises(ConfigError) as caught:
        Request(steps=0, width=100, guidance=float("inf"), seed=-1, clip_skip=0, batch=0, colour="red")
    for field in ("steps", "width", "guidance", "seed", "clip_skip", "batch", "colour"):
        assert field in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sampler": "Eulerish"}, "Eulerish"),
        ({"sampler": "LCM", "steps": 51}, "at most 50"),
        ({"prompt": "a\x00b"}, "U\\+0000"),
        ({"prompt": "a\x1b[31m"}, "U\\+001B"),
        ({"guidance": float("nan")}, "guidance"),
    ],
)
def test_requests_that_are_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        Request(**fields)


def test_requests_are_normalised_and_frozen():
    request = Request(prompt="a\r\nb", sampler="euler_ancestral")
    assert (request.prompt, request.sampler) == ("a\nb", "Euler a")
    with pytest.raises(ValidationError):
        request.steps = 3


def test_every_field_of_a_request_is_documented():
    for name, field in Request.model_fields.items():
        assert field.description and field.description.endswith("."), name


def test_recipes_refuse_what_they_do_not_know():
    content = json.loads(RECIPE.to_json())
    content["colour"] = "red"
    with pytest.raises(RecipeError, match="less than batch_size 2"):
        Recipe.from_json(json.dumps({**json.loads(RECIPE.to_json()), "batch_index": 2}))
    content["adapters"][0]["unet"] = float("nan")
    with pytest.raises(RecipeError) as caught:
        Recipe.from_json(json.dumps(content))
    assert "colour" in str(caught.value)
    assert "adapters.0.unet" in str(caught.value)
