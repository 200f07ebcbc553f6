"""How well the embedded base draws what it was never trained on, as the judge sees it."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from benchmarks.clip_score import clip_rows
from benchmarks.drawing import Drawing, draw, judged_sheet
from benchmarks.exam import EDGE, HEADS, LOOKS, PLAIN, ROBOT, Seen, answers, held_out_scenes, said
from benchmarks.judge import Judge
from benchmarks.measure import interleaved
from benchmarks.report import Section, held, share
from difflora.families.model import Model
from train_scripts.shapes.characters import random_robot
from train_scripts.shapes.pictures import to_images, to_tensor
from train_scripts.shapes.styles import STYLES
from train_scripts.shapes.world import COLOURS, Scene, random_scene

COLUMNS = ("what", "figure", "goal")
SHEET, SHEET_COLUMNS = 48, 8
VAE_BATCH = 16


@dataclass(frozen=True, slots=True)
class BaseQuality:
    """How much is drawn and measured."""

    drawing: Drawing
    singles: int = 200
    pairs: int = 100
    pictures: int = 64  # through the VAE, of each look
    timings: int = 5

    def quick(self) -> "BaseQuality":
        """A few of each, to see that everything runs."""
        return BaseQuality(self.drawing, singles=16, pairs=8, pictures=4, timings=3)


@dataclass(frozen=True, slots=True)
class Judged:
    """A prompt, what its picture is to show, and what the judge saw."""

    prompt: str
    wanted: Seen
    seen: Seen

    @property
    def shapes_right(self) -> bool:
        """The right objects, as many as asked for, each in its place."""
        return (self.seen.layout, self.seen.shapes) == (self.wanted.layout, self.wanted.shapes)

    @property
    def colours_right(self) -> bool:
        return self.seen.colours == self.wanted.colours

    @property
    def background_right(self) -> bool:
        return self.seen.background == self.wanted.background

    @property
    def right(self) -> bool:
        return self.shapes_right and self.colours_right and self.background_right


def base_sections(
    model: Model, judge: Judge, options: BaseQuality, *, clip: Path, output: Path
) -> list[Section]:
    """What the judge itself gets right, the VAE, held-out prompts, CLIP, and seconds an image.

    Writes `base_sheet.png` and what was misjudged, `base_misses.json`, to the folder `output`.
    """
    judge_table = Section("The judge itself", _ABOUT_JUDGE, *_judge_rows(model, judge, options.pictures))
    vae = Section("VAE of the base", _ABOUT_VAE, COLUMNS, tuple(vae_rows(model, options.pictures)))
    scenes = [
        held_out_scenes(count, pairs=two) for count, two in ((options.singles, False), (options.pairs, True))
    ]
    images = [draw(model, [scene.caption for scene in some], options.drawing) for some in scenes]
    verdicts = [judged(judge, some, drawn) for some, drawn in zip(scenes, images, strict=True)]
    rows = [
        *prompt_rows("one object", verdicts[0], goal="≥ 0.9"),
        *prompt_rows("two objects", verdicts[1], goal="≥ 0.7"),
    ]
    every_scene, every_image = scenes[0] + scenes[1], images[0] + images[1]
    rows += clip_rows(clip, model.pipeline.tokenizer, every_scene, every_image)
    rows += _time_rows(model, options)
    _write(output, images, verdicts)
    drawn = Section(
        "Held-out prompts on the base",
        f"{_ABOUT_PROMPTS} Drawn with {options.drawing}.",
        COLUMNS,
        tuple(rows),
    )
    return [drawn, vae, judge_table]


_ABOUT_JUDGE = (
    "A small network trained on the procedural world alone; what it gets right of pictures of which all is "
    "known. Background and colours are asked only where the look shows them."
)
_ABOUT_VAE = "Encoded and decoded pictures of unseen scenes, mean of each picture's PSNR."
_ABOUT_PROMPTS = (
    "Each names a (shape, colour, background) that the base was never trained on. Shapes are right when as "
    "many objects as asked for are each in their place."
)


def judged(judge: Judge, scenes: Sequence[Scene], images: Sequence[Image.Image]) -> list[Judged]:
    """What the judge says of plain pictures of scenes."""
    return [
        Judged(scene.caption, said(scene), seen) for scene, seen in zip(scenes, judge(images), strict=True)
    ]


def prompt_rows(what: str, verdicts: Sequence[Judged], *, goal: str = "") -> list[tuple[str, str, str]]:
    """Shares of pictures with the right shapes, colours, both, background, and all of it."""
    both = share([one.shapes_right and one.colours_right for one in verdicts])
    return [
        (f"{what}: shapes and colours right", str(both), held(both.value, goal)),
        (f"{what}: shapes right", str(share([one.shapes_right for one in verdicts])), ""),
        (f"{what}: colours right", str(share([one.colours_right for one in verdicts])), ""),
        (f"{what}: background right", str(share([one.background_right for one in verdicts])), ""),
        (f"{what}: all right", str(share([one.right for one in verdicts])), ""),
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


def vae_rows(model: Model, count: int) -> list[tuple[str, str, str]]:
    """PSNR of `count` pictures of each look."""
    rows = []
    for look, (images, _) in looks(count).items():
        each = [
            decibels(image, back) for image, back in zip(images, reconstructed(model, images), strict=True)
        ]
        mean = sum(each) / len(each)
        rows.append((look, f"{mean:.1f} dB (worst picture {min(each):.1f})", held(mean, "≥ 27 dB")))
    return rows


def decibels(wanted: Image.Image, got: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB images of one size; infinite where they are equal."""
    error = (to_tensor([wanted]) - to_tensor([got])).double().pow(2).mean()
    return float(10 * torch.log10(4 / error))


@torch.no_grad()
def reconstructed(model: Model, images: Sequence[Image.Image]) -> list[Image.Image]:
    """The images after the base's VAE, as 8-bit pictures."""
    vae, back = model.pipeline.vae, []
    for start in range(0, len(images), VAE_BATCH):
        pixels = to_tensor(images[start : start + VAE_BATCH]).to(model.device, vae.dtype)
        back += to_images(vae.decode(vae.encode(pixels).latent_dist.mean).sample.float().cpu())
    return back


def _judge_rows(
    model: Model, judge: Judge, count: int
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Columns and rows: each head's accuracy for every look, clean and after the VAE."""
    columns = ("pictures", *HEADS, "whole picture")
    rows = []
    for look, (images, wanted) in looks(count).items():
        for how, shown in (("clean", images), ("after the VAE", reconstructed(model, images))):
            shares = accuracy(judge(shown), wanted)
            rows.append((f"{look}, {how}", *(shares[head] for head in columns[1:])))
    return columns, tuple(rows)


def accuracy(seen: Sequence[Seen], wanted: Sequence[Seen]) -> Mapping[str, str]:
    """For each head, and the "whole picture", the share got right of the pictures that show it."""
    found: dict[str, list[bool]] = {head: [] for head in (*HEADS, "whole picture")}
    for one, truth in zip(seen, wanted, strict=True):
        asked = answers(one, truth)
        for head, good in asked.items():
            found[head].append(good)
        found["whole picture"].append(all(asked.values()))
    return {head: f"{100 * share(some).value:.0f} %" if some else "–" for head, some in found.items()}


def _time_rows(model: Model, options: BaseQuality) -> list[tuple[str, str, str]]:
    prompts = [scene.caption for scene in held_out_scenes(options.drawing.batch, pairs=False)]
    times = interleaved(
        {
            "one": partial(draw, model, prompts[:1], options.drawing),
            "batch": partial(draw, model, prompts, options.drawing),
        },
        rounds=options.timings,
        warmup=1,
    )
    alone, each = times["one"].median, times["batch"].median / len(prompts)
    threads = f"{torch.get_num_threads()} threads"
    return [
        (f"one image alone, {threads}", f"{alone:.2f} s", held(alone, "≤ 3 s")),
        (f"an image in a batch of {len(prompts)}, {threads}", f"{each:.2f} s", held(each, "≤ 3 s")),
    ]


def _write(output: Path, images: Sequence[list[Image.Image]], verdicts: Sequence[list[Judged]]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    half = SHEET // 2
    shown = [image for some in images for image in some[:half]]
    good = [one.right for some in verdicts for one in some[:half]]
    judged_sheet(shown, good, columns=SHEET_COLUMNS).save(output / "base_sheet.png")
    misses = [asdict(one) for some in verdicts for one in some if not one.right]
    text = json.dumps(misses, indent=1, ensure_ascii=False)
    (output / "base_misses.json").write_text(text + "\n", encoding="utf-8", newline="\n")
