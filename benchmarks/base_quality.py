"""How well the embedded base draws what it was never trained on, as the judge sees it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from benchmarks.clip_score import clip_rows
from benchmarks.drawing import Drawing, draw, judged_sheet
from benchmarks.exam import Seen, held_out_scenes, said
from benchmarks.judge import Judge
from benchmarks.known import judge_section, known_pictures, vae_section
from benchmarks.measure import interleaved
from benchmarks.report import Section, held, share
from difflora.families.model import Model
from train_scripts.shapes.world import Scene

COLUMNS = ("what", "figure", "goal")
SHEET, SHEET_COLUMNS = 48, 8


@dataclass(frozen=True, slots=True)
class BaseQuality:
    """How much is drawn and measured."""

    drawing: Drawing
    singles: int = 200
    pairs: int = 100
    pictures: int = 100  # through the VAE, of each look
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
    known = known_pictures(model, options.pictures)
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
    return [drawn, vae_section(known), judge_section(judge, known)]


_ABOUT_PROMPTS = (
    "Each names a (shape, colour, background) that the base was never trained on. Shapes are right when as "
    "many objects as asked for are each in their place; sizes are not judged. There are some 180 such "
    "captions of one object, so a few come twice, with other seeds."
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
