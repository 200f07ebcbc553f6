"""Pictures that are drawn and judged at once."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from benchmarks.drawing import Drawing, draw
from benchmarks.exam import Seen, answers
from benchmarks.judge import Judge
from benchmarks.report import Share, share
from difflora.adapter import Adapter, Stack
from difflora.families.model import Model


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures of the same prompts and seeds, and what the judge saw in them."""

    images: list[Image.Image]
    seen: list[Seen]

    def carrying(self, look: str) -> Share:
        return share([one.look == look for one in self.seen])

    def right(self, wanted: Sequence[Seen], heads: Sequence[str]) -> Share:
        """How many are right in all of `heads`, of those that can show any of them."""
        asked = [answers(one, truth) for one, truth in zip(self.seen, wanted, strict=True)]
        chosen = [[given[head] for head in heads if head in given] for given in asked]
        return share([all(some) for some in chosen if some])


@dataclass(frozen=True, slots=True)
class Painter:
    """Draws with the base and an adapter, and has it judged."""

    model: Model
    judge: Judge
    drawing: Drawing

    def __call__(self, prompts: Sequence[str], adapter: Adapter, weight: float = 1.0) -> Drawn:
        images = draw(self.model, prompts, self.drawing, stack=Stack([(adapter, weight)]))
        return Drawn(images, self.judge(images))
