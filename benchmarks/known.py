"""Pictures of which all is known: what the base's VAE makes of them, and what the judge sees."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from benchmarks.exam import EDGE, HEADS, LOOKS, OTHER, PLAIN, ROBOT, Seen, answers, lessons, said
from benchmarks.judge import Judge
from benchmarks.report import Section, held, share
from difflora.families.model import Model
from train_scripts.shapes.characters import random_robot
from train_scripts.shapes.pictures import to_images, to_tensor
from train_scripts.shapes.styles import STYLES
from train_scripts.shapes.world import COLOURS, random_scene

BATCH = 16
WHOLE = "whole picture"


@dataclass(frozen=True, slots=True)
class Known:
    """Pictures of unseen scenes in one look, what they show, and the same after the base's VAE."""

    look: str
    images: list[Image.Image]
    wanted: list[Seen]
    decoded: list[Image.Image]


def known_pictures(model: Model, count: int) -> list[Known]:
    """`count` of the same scenes in every look, and as many robots."""
    return [
        Known(look, images, wanted, reconstructed(model, images))
        for look, (images, wanted) in looks(count).items()
    ]


def looks(count: int) -> dict[str, tuple[list[Image.Image], list[Seen]]]:
    """For each look and the robot: `count` pictures of unseen scenes and what they show."""
    rng = random.Random("unseen scenes of the benchmarks")
    scenes = [random_scene(rng) for _ in range(count)]
    plain = [scene.render(EDGE, EDGE) for scene in scenes]
    pictures = {
        look: (
            [STYLES[look](image) if look != PLAIN else image for image in plain],
            [said(scene, look) for scene in scenes],
        )
        for look in LOOKS
    }
    places = [rng.choice(list(COLOURS)) for _ in range(count)]
    robots = [random_robot(rng, place).render(EDGE) for place in places]
    return pictures | {ROBOT: (robots, [Seen(place, subject=ROBOT) for place in places])}


def spoiled(count: int) -> list[tuple[Image.Image, Seen]]:
    """Pictures of unseen scenes with an object that is no shape of the world, or has two colours."""
    drawn = lessons(100 * count, seed="unseen spoiled scenes of the benchmarks")
    return list(islice((one for one in drawn if OTHER in (*one[1].shapes, *one[1].colours)), count))


@torch.no_grad()
def reconstructed(model: Model, images: Sequence[Image.Image]) -> list[Image.Image]:
    """The images after the base's VAE, as 8-bit pictures."""
    vae, back = model.pipeline.vae, []
    for start in range(0, len(images), BATCH):
        pixels: Tensor = to_tensor(images[start : start + BATCH]).to(model.device, vae.dtype)
        back += to_images(vae.decode(vae.encode(pixels).latent_dist.mean).sample.float().cpu())
    return back


def vae_section(known: Sequence[Known]) -> Section:
    """PSNR of each look."""
    about = (
        f"{len(known[0].images)} pictures of unseen scenes a look, encoded and decoded; mean of their PSNR."
    )
    rows = []
    for some in known:
        each = [decibels(image, back) for image, back in zip(some.images, some.decoded, strict=True)]
        mean = sum(each) / len(each)
        rows.append((some.look, f"{mean:.1f} dB", f"{min(each):.1f} dB", held(mean, "≥ 27 dB")))
    return Section("VAE of the base", about, ("look", "PSNR", "worst picture", "goal"), tuple(rows))


def decibels(wanted: Image.Image, got: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB images of one size; infinite where they are equal."""
    error = (to_tensor([wanted]) - to_tensor([got])).double().pow(2).mean()
    return float(10 * torch.log10(4 / error))


def judge_section(judge: Judge, known: Sequence[Known]) -> Section:
    """Each head's accuracy for every look, clean and after the VAE."""
    about = (
        "The judge is a small network trained on the procedural world alone. What it gets right of pictures "
        "of unseen scenes; backgrounds and colours are asked only where the look shows them. Spoiled ones "
        "have an object that is a blob, two shapes in one or of two colours, to be told from all right ones."
    )
    rows = []
    for some in known:
        for how, shown in (("clean", some.images), ("after the VAE", some.decoded)):
            shares = accuracy(judge(shown), some.wanted)
            rows.append((f"{some.look}, {how}", *shares.values()))
    images, wanted = zip(*spoiled(3 * len(known[0].images)), strict=True)
    rows.append(("spoiled, in any look", *accuracy(judge(images), wanted).values()))
    return Section("The judge itself", about, ("pictures", *HEADS, WHOLE), tuple(rows))


def accuracy(seen: Sequence[Seen], wanted: Sequence[Seen]) -> Mapping[str, str]:
    """For each head, then for the whole picture, the share got right of the pictures that show it."""
    found: dict[str, list[bool]] = {head: [] for head in (*HEADS, WHOLE)}
    for one, truth in zip(seen, wanted, strict=True):
        asked = answers(one, truth)
        for head, good in asked.items():
            found[head].append(good)
        found[WHOLE].append(all(asked.values()))
    return {head: f"{100 * share(some).value:.0f} %" if some else "–" for head, some in found.items()}
