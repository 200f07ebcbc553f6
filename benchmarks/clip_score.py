"""Prompt faithfulness by the CLIP of the world, where it is there."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.report import share
from train_scripts.shapes.architecture import CLIP_EDGE
from train_scripts.shapes.captions import tokenize
from train_scripts.shapes.clip import image_features, text_features, twin
from train_scripts.shapes.pictures import to_tensor
from train_scripts.shapes.world import Scene


def clip_rows(
    folder: Path, tokenizer: Any, scenes: Sequence[Scene], images: Sequence[Image.Image]
) -> list[tuple[str, str, str]]:
    """The share of pictures that lie nearer to their own caption than to that of a twin, which differs in one
    thing; the drawn ones, and, as what can be reached, true renderings of the same scenes."""
    if not folder.is_dir():
        return []
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    true = [scene.render(image.width, image.height) for scene, image in zip(scenes, images, strict=True)]
    return [
        ("CLIP: own caption nearer than a twin's", str(share(faithful(clip, tokenizer, scenes, images))), ""),
        ("CLIP: the same of true renderings", str(share(faithful(clip, tokenizer, scenes, true))), ""),
    ]


@torch.no_grad()
def faithful(clip: Any, tokenizer: Any, scenes: Sequence[Scene], images: Sequence[Image.Image]) -> list[bool]:
    """Whether each image lies nearer to its scene's caption than to that of the scene's twin."""
    rng = random.Random("twins of the benchmarks")
    twins = [_other(scene, rng) for scene in scenes]
    small = [image.resize((CLIP_EDGE, CLIP_EDGE), Image.Resampling.BOX) for image in images]
    pictures = ((to_tensor(small) + 1) * 127.5).round()
    seen = image_features(clip, pictures)
    own = (seen * text_features(clip, tokenize(tokenizer, [one.caption for one in scenes]))).sum(dim=1)
    other = (seen * text_features(clip, tokenize(tokenizer, [one.caption for one in twins]))).sum(dim=1)
    return (own > other).tolist()


def _other(scene: Scene, rng: random.Random) -> Scene:
    """A twin whose caption says something else."""
    found = twin(scene, rng)
    return found if found.caption != scene.caption else _other(scene, rng)
