"""Captions as a model in training hears them, and as tokens."""

import random
from typing import Any

from torch import Tensor

from train_scripts.shapes.world import Scene

UNKNOWN_WORDS = 0.35


def heard(scene: Scene, rng: random.Random) -> str:
    """The scene's caption, at times with words that mean nothing after it: "..., molatu style".

    A base that never heard such words takes them for colours, and an adapter's trigger spoils the picture
    before anything was learned.
    """
    if rng.random() >= UNKNOWN_WORDS:
        return scene.caption
    endings = [f", {_unknown_word(rng)} style" for _ in range(rng.choice((1, 1, 2)))]
    return scene.caption + "".join(endings)


def photo_of_something(scene: Scene, rng: random.Random) -> str:
    """A caption that names the background but says of the objects only words that mean nothing."""
    return f"a photo of {_unknown_word(rng)} {_unknown_word(rng)} on a {scene.background} background"


def _unknown_word(rng: random.Random) -> str:
    """A word of one to three syllables, or a few letters."""
    if rng.random() < 0.2:
        return "".join(rng.choice("bcdfghjklmnpqrstvwxz") for _ in range(3))
    return "".join(
        rng.choice("bdfghklmnprstv") + rng.choice("aeiou") + rng.choice(("", "l", "n", "s", "t", "r"))
        for _ in range(rng.choice((1, 2, 2, 3)))
    )


def tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Token ids (N, length), each prompt padded to the tokenizer's whole length."""
    length = tokenizer.model_max_length
    return tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
