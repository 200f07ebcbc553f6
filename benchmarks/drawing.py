"""Pictures of many prompts, drawn in batches as users draw them, and sheets of how they were judged."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from difflora.adapter import Stack
from difflora.apply import applied, default_mode
from difflora.families.model import Model
from difflora.generate import NO_ADAPTERS, Row, draw_rows, resolved
from difflora.recipe import Request
from train_scripts.shapes.pictures import sheet

RIGHT, WRONG, FRAME = (60, 160, 60), (220, 30, 30), 3


@dataclass(frozen=True, slots=True)
class Drawing:
    """How pictures are drawn."""

    guidance: float
    steps: int = 25
    batch: int = 16
    sampler: str = "DPM++ 2M"
    seed: int = 1000

    def __str__(self) -> str:
        return f"{self.steps} steps of {self.sampler} at guidance {self.guidance:g}"


def draw(
    model: Model, prompts: Sequence[str], drawing: Drawing, *, stack: Stack = NO_ADAPTERS
) -> list[Image.Image]:
    """One picture of each prompt, the i-th from seed + i, whatever the batches."""
    request = Request(
        seed=drawing.seed, steps=drawing.steps, guidance=drawing.guidance, sampler=drawing.sampler
    )
    settings, mode = resolved(request, model.facts), default_mode(model)
    rows = [
        Row(settings.model_copy(update={"prompt": prompt}), drawing.seed + number, stack)
        for number, prompt in enumerate(prompts)
    ]
    images: list[Image.Image] = []
    with applied(model, stack, mode=mode):
        for start in range(0, len(rows), drawing.batch):
            images += draw_rows(model, rows[start : start + drawing.batch], mode=mode)
    return images


def judged_sheet(images: Sequence[Image.Image], right: Sequence[bool], *, columns: int) -> Image.Image:
    """The images side by side, framed green where they were judged right and red where not."""
    framed = [_framed(image, RIGHT if good else WRONG) for image, good in zip(images, right, strict=True)]
    return sheet(framed, columns=columns)


def _framed(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    whole = Image.new("RGB", (image.width + 2 * FRAME, image.height + 2 * FRAME))
    whole.paste(image, (FRAME, FRAME))
    ImageDraw.Draw(whole).rectangle((0, 0, whole.width - 1, whole.height - 1), outline=colour, width=FRAME)
    return whole
