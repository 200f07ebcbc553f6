"""Pictures of a prompt and a mix, at wish also without the mix, from the same seeds."""

from __future__ import annotations

import json

from PIL import Image
from pydantic import Field

from difflora import Request, Stack, generate
from webui.work.desk import Desk, Done, Mixed


class Draw(Mixed):
    """What to draw. The prompt may hold `<lora:name:weight>` tags, whose adapters join the mix."""

    base: str
    request: Request
    count: int = Field(default=1, ge=1, le=64)
    compare: bool = Field(default=False, description="Draw the same seeds with the adapters off as well.")


def draw(wanted: Draw, desk: Desk) -> Done:
    """Draws and keeps the pictures; those without the mix have names that end in `-off`."""
    desk.say("loading the base and the adapters")
    model = desk.bases.get(wanted.base)
    stack, request = desk.mixed(wanted.mix, wanted.request)
    both = wanted.compare and len(stack) > 0
    passes = [(stack, "", "with the adapters"), (Stack(), "-off", "with the adapters off")]
    files: list[str] = []
    for number, (mix, ending, told) in enumerate(passes if both else passes[:1]):
        desk.note = f"drawing {told}, step" if both else "drawing, step"

        def progress(done: int, total: int, before: int = number) -> None:
            desk.progress(before * total + done, (1 + both) * total)

        images = generate(
            model,
            request,
            stack=mix,
            count=wanted.count,
            progress=progress,
            watch=desk.watch(wanted.base),
        )
        files += [desk.keep(image, _name(place, image, ending)) for place, image in enumerate(images)]
    return Done(tuple(files), json.dumps({"prompt": request.prompt}))


def _name(place: int, image: Image.Image, ending: str) -> str:
    seed = json.loads(image.info["difflora"])["seed"]
    return f"{place:02}-{seed}{ending}.png"
