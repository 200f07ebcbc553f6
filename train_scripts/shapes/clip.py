"""A small CLIP of the world: captions and scenes that belong together lie close together.

Each batch holds pairs of twins that differ in one thing alone (a colour, a shape, a place), for which random
scenes are too easy: a text encoder that tells only which words occur would solve those.
Source: Radford et al. 2021 (CLIP), Yuksekgonul et al. 2023 (negatives of equal words).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from train_scripts.shapes.architecture import CLIP_EDGE
from train_scripts.shapes.captions import heard, tokenize
from train_scripts.shapes.pictures import drawn_by, to_tensor
from train_scripts.shapes.trainee import Rate, Trainee, generator, named
from train_scripts.shapes.vae import Report
from train_scripts.shapes.world import COLOURS, SHAPES, Odds, Scene, Thing, random_scene, tint

PAIRS = Odds(pair=0.6)
MAX_SCALE = 4.6052  # log of 100, CLIP's own limit of its temperature


@dataclass(frozen=True, slots=True)
class CLIPOptions:
    """How the CLIP is trained; a batch is `batch` scenes and the twin of each."""

    steps: int = 800
    batch: int = 128
    scenes: int = 12000
    peak_rate: float = 1e-3
    seed: int = 3


@dataclass(frozen=True, slots=True)
class Twins:
    """Scenes two by two: `scenes[2 * i]` and `scenes[2 * i + 1]`, and their uint8 pictures (N, 3, 64, 64)."""

    scenes: list[Scene]
    pictures: Tensor


def twins(options: CLIPOptions, cache: Path) -> Twins:
    """The scenes of `options` and their twins; the pictures are kept in the folder `cache` until what draws
    them changes."""
    rng = random.Random(f"{options.seed} twins")
    scenes = []
    while len(scenes) < 2 * options.scenes:
        scene = random_scene(rng, PAIRS)
        pair = (scene, twin(scene, rng))
        scenes += [] if any(each.held_out for each in pair) else pair
    file = cache / f"twins-{options.seed}-{options.scenes}-{drawn_by(scenes)}.safetensors"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pixels = to_tensor([scene.render(CLIP_EDGE, CLIP_EDGE) for scene in scenes])
        save_file({"pictures": ((pixels + 1) * 127.5).round().to(torch.uint8)}, file)
    return Twins(scenes, load_file(file)["pictures"])


def twin(scene: Scene, rng: random.Random) -> Scene:
    """`scene` changed in one thing that its caption says: a colour, a shape, the background, who is where."""
    place = rng.randrange(len(scene.things))
    change = rng.choice(("colour", "shape", "background", "swap" if scene.relation else "colour"))
    if change == "background":
        taken = {scene.background, *(thing.colour for thing in scene.things)}
        name = rng.choice([colour for colour in COLOURS if colour not in taken])
        return replace(scene, background=name, background_rgb=tint(rng, name))
    if change == "swap" and scene.things[0].words != scene.things[1].words:
        first, second = scene.things
        return replace(scene, things=(_at(second, first), _at(first, second)))
    thing = scene.things[place]
    if change == "shape":
        new = replace(thing, shape=rng.choice([shape for shape in SHAPES if shape != thing.shape]))
    else:
        name = rng.choice([name for name in COLOURS if name not in (thing.colour, scene.background)])
        new = replace(thing, colour=name, rgb=tint(rng, name))
    things = list(scene.things)
    things[place] = new
    return replace(scene, things=tuple(things))


def _at(thing: Thing, other: Thing) -> Thing:
    return replace(thing, x=other.x, y=other.y)


def clip_trainee(clip: Any, options: CLIPOptions) -> Trainee:
    """The parameters of both encoders and the temperature, ready to train."""
    origin = f"{replace(options, steps=0)}, drawn by {drawn_by()}"
    rate = Rate(options.peak_rate, options.steps)
    return Trainee(named(clip, "clip"), rate=rate, decay=0.998, origin=origin)


def train_clip(
    clip: Any, tokenizer: Any, trainee: Trainee, data: Twins, options: CLIPOptions
) -> Iterator[Report]:
    """Train `clip` in place until `options.steps` are made."""
    clip.train()
    while trainee.step < options.steps:
        random_numbers = generator(options.seed, trainee.step)
        rng = random.Random(f"{options.seed} {trainee.step}")
        rows = torch.randint(len(data.scenes) // 2, (options.batch,), generator=random_numbers)
        rows = torch.cat([2 * rows, 2 * rows + 1])
        scenes = [data.scenes[row] for row in rows.tolist()]
        loss = _loss(clip, tokenizer, scenes, data.pictures[rows], rng)
        trainee.update(loss)
        with torch.no_grad():
            clip.logit_scale.clamp_(max=MAX_SCALE)
        yield Report(trainee.step, loss.item())


def _loss(clip: Any, tokenizer: Any, scenes: list[Scene], pictures: Tensor, rng: random.Random) -> Tensor:
    """Cross-entropy both ways; scenes of the same caption are equally right answers for each other."""
    tokens = tokenize(tokenizer, [heard(scene, rng) for scene in scenes])
    with torch.autocast("cpu", torch.bfloat16):
        text, image = text_features(clip, tokens), image_features(clip, pictures)
        similarity = clip.logit_scale.exp() * text.float() @ image.float().T
    captions = [scene.caption for scene in scenes]
    numbers = torch.tensor([captions.index(caption) for caption in captions])
    right = (numbers[:, None] == numbers).float()
    right = right / right.sum(dim=1, keepdim=True)
    forth = functional.cross_entropy(similarity, right)
    back = functional.cross_entropy(similarity.T, right)
    return (forth + back) / 2


def text_features(clip: Any, tokens: Tensor) -> Tensor:
    """Unit vectors (N, 128) of token ids (N, 32)."""
    pooled = clip.text_model(input_ids=tokens).pooler_output
    return functional.normalize(clip.text_projection(pooled), dim=-1)


def image_features(clip: Any, pictures: Tensor) -> Tensor:
    """Unit vectors (N, 128) of uint8 pictures (N, 3, 64, 64)."""
    pooled = clip.vision_model(pixel_values=pictures.float() / 127.5 - 1).pooler_output
    return functional.normalize(clip.visual_projection(pooled), dim=-1)


@torch.no_grad()
def twins_told_apart(clip: Any, tokenizer: Any, data: Twins) -> float:
    """The share of `data`'s twins whose captions both lie nearer to the own picture than to the other's."""
    text = text_features(clip, tokenize(tokenizer, [scene.caption for scene in data.scenes]))
    image = image_features(clip, data.pictures)
    own = (text * image).sum(dim=1)
    other = (text * image.view(-1, 2, image.shape[1]).flip(1).flatten(0, 1)).sum(dim=1)
    return (own > other).view(-1, 2).all(dim=1).float().mean().item()
