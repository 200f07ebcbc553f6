"""A judge of pictures: a small network, trained on the procedural world alone, that says what they show.

It knows nothing of the base that it judges. Its own accuracy on pictures of which all is known is measured
beside every figure that it gives, on clean pictures and on ones that went through the base's VAE.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import exam
from benchmarks.exam import EDGE, HEADS, UNKNOWN, Seen, classes, lessons, seen_from
from train_scripts.shapes import characters, styles, world
from train_scripts.shapes.pictures import to_tensor

CACHE = Path(__file__).parents[1] / "outputs" / "benchmarks"
SIGHT = 64  # the judge looks at half the size
LOOKED_AT = 128  # pictures at once
SCENE_HEADS = ("background", "layout", "look", "subject")
SHAPE, COLOUR = len(HEADS["first shape"]), len(HEADS["first colour"])
SIZES = [len(names) for names in HEADS.values()]


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """How the judge is trained."""

    pictures: int = 14000
    epochs: int = 16
    batch: int = 64
    rate: float = 3e-3
    seed: int = 5

    @property
    def key(self) -> str:
        """What the training depends on: these options and the sources of the world and of the judge."""
        digest = hashlib.sha256(repr(self).encode())
        for module in (world, characters, styles, exam):
            digest.update(Path(str(module.__file__)).read_text(encoding="utf-8").encode())
        digest.update(Path(__file__).read_text(encoding="utf-8").encode())
        return digest.hexdigest()[:12]

    def file(self, cache: Path) -> Path:
        """Where the trained judge lies in the folder `cache`."""
        return cache / f"judge-{self.key}.safetensors"


class Judge:
    """Says what pictures show."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net.eval()

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[Seen]:
        """What each RGB image of 128×128 shows, the likeliest class of every head."""
        seen = []
        for start in range(0, len(images), LOOKED_AT):
            heads = self.net(sight(images[start : start + LOOKED_AT])).split(SIZES, dim=1)
            chosen = torch.stack([head.argmax(dim=1) for head in heads], dim=1).tolist()
            seen += [seen_from(dict(zip(HEADS, row, strict=True))) for row in chosen]
        return seen


def trained_judge(options: JudgeOptions | None = None, *, cache: Path = CACHE) -> Judge:
    """The judge of `options`, from the folder `cache` if it was trained before with the same world.

    The same options give the same judge on the same machine and number of threads.
    """
    options = options or JudgeOptions()
    file = options.file(cache)
    net = new_net(options.seed)
    if file.exists():
        net.load_state_dict(load_file(file))
        return Judge(net)
    _train(net, options)
    cache.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, partial)
    partial.replace(file)
    return Judge(net)


def new_net(seed: int) -> nn.Module:
    """A `Net` with weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net()


class Net(nn.Module):
    """(N, 3, 64, 64) between -1 and 1 → the scores of all heads, one beside the other; 0.26 M parameters.

    One reader of shape and colour looks at the whole and at each half; the layout says which of these is the
    first object and which the second. One that read everything from one vector learned shapes ten times more
    slowly, since it met each of them anew in each place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_layer(3, 16, stride=1),
            *_layer(16, 32, stride=2),
            *_layer(32, 48, stride=2),
            *_layer(48, 64, stride=1),
            *_layer(64, 96, stride=2),
            *_layer(96, 128, stride=1),
        )
        self.scene = nn.Linear(5 * 256, sum(len(HEADS[head]) for head in SCENE_HEADS))
        self.thing = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, SHAPE + COLOUR))

    def forward(self, pixels: Tensor) -> Tensor:
        seen = self.trunk(pixels)
        half = seen.shape[-1] // 2
        parts = (seen, seen[..., :half], seen[..., half:], seen[..., :half, :], seen[..., half:, :])
        pooled = [torch.cat([part.amax(dim=(2, 3)), part.mean(dim=(2, 3))], dim=1) for part in parts]
        sizes = [len(HEADS[head]) for head in SCENE_HEADS]
        background, layout, look, subject = self.scene(torch.cat(pooled, dim=1)).split(sizes, dim=1)
        whole, left, right, upper, lower = (self.thing(part) for part in pooled)
        one, row, column = layout.detach().softmax(dim=1).split(1, dim=1)
        first = one * whole + row * left + column * upper
        second = row * right + column * lower
        return torch.cat([background, layout, first, second, look, subject], dim=1)


def _layer(before: int, after: int, *, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    ]


def sight(images: Sequence[Image.Image]) -> Tensor:
    """Images of any one size as the judge sees them: float32 (N, 3, 64, 64) between -1 and 1."""
    whole = [image if image.size == (EDGE, EDGE) else image.resize((EDGE, EDGE)) for image in images]
    return functional.avg_pool2d(to_tensor(whole), EDGE // SIGHT)


def _train(net: Any, options: JudgeOptions) -> None:
    pixels, targets = _examples(options)
    net.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.rate, weight_decay=0.02)
    total = options.epochs * -(-len(pixels) // options.batch)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=total, pct_start=0.15)
    source = torch.Generator().manual_seed(options.seed)
    for rows in _batches(len(pixels), options, source):
        batch = spoil(pixels[rows].float() / 127.5 - 1, source).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            scores = net(batch).float()
        loss = _loss(scores, targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plan.step()
    net.eval().to(memory_format=torch.contiguous_format)


def _examples(options: JudgeOptions) -> tuple[Tensor, Tensor]:
    """uint8 pictures (N, 3, 64, 64) and their classes (N, heads)."""
    pictures, targets, waiting = [], [], []
    for image, seen in lessons(options.pictures, seed=f"{options.seed} judge"):
        waiting.append(image)
        targets.append(list(classes(seen).values()))
        if len(waiting) == LOOKED_AT:
            pictures.append(_as_bytes(waiting))
            waiting = []
    if waiting:
        pictures.append(_as_bytes(waiting))
    return torch.cat(pictures), torch.tensor(targets)


def _as_bytes(images: Sequence[Image.Image]) -> Tensor:
    return ((sight(images) + 1) * 127.5).round().to(torch.uint8)


def _batches(count: int, options: JudgeOptions, source: torch.Generator) -> Iterator[Tensor]:
    for _ in range(options.epochs):
        yield from torch.randperm(count, generator=source).split(options.batch)


def _loss(scores: Tensor, targets: Tensor) -> Tensor:
    """The sum of the heads' cross-entropies, over the pictures that show what the head is asked for."""
    loss = scores.new_zeros(())
    for number, head in enumerate(scores.split(SIZES, dim=1)):
        known = targets[:, number] != UNKNOWN
        if known.any():
            loss = loss + functional.cross_entropy(head[known], targets[known, number], label_smoothing=0.02)
    return loss


def spoil(pixels: Tensor, source: torch.Generator) -> Tensor:
    """Pictures as a base may draw them: moved, soft, off in colour, noisy, stained; each in its own way."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(len(pixels), *shape, generator=source)

    moved = functional.pad(pixels, (2, 2, 2, 2), mode="replicate")
    down, across = torch.randint(5, (2,), generator=source).tolist()
    moved = moved[..., down : down + SIGHT, across : across + SIGHT]
    soft = functional.avg_pool2d(functional.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    softened = moved.lerp(soft, 0.8 * draw(1, 1, 1).square())
    coloured = softened * (0.92 + 0.16 * draw(3, 1, 1)) + 0.16 * (draw(3, 1, 1) - 0.5)
    noise = torch.randn(pixels.shape, generator=source)
    stains = functional.interpolate(
        torch.randn(len(pixels), 3, 8, 8, generator=source), SIGHT, mode="bilinear"
    )
    strength = 0.1 * draw(2, 1, 1).square()
    return (coloured + strength[:, :1] * noise + strength[:, 1:] * stains).clamp(-1, 1)
