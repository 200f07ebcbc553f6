"""Latents as pictures: the colours of the finished image, roughly, without the VAE."""

import numpy as np
import pytest
import torch
from PIL import Image

from difflora import LatentColours, Request, generate
from difflora.families.model import Model

PROMPTS = (
    "a red circle on a white background",
    "a yellow star on a blue background",
    "a white heart on a black background",
)


def numbers(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((16, 16), Image.Resampling.BOX), dtype=float)


@pytest.fixture(scope="module")
def colours(shapes_model: Model) -> LatentColours:
    return LatentColours.of(shapes_model)


def test_what_is_watched_looks_most_like_its_own_image(shapes_model: Model, colours: LatentColours) -> None:
    seen: list[torch.Tensor] = []
    images, pictures = [], []
    for prompt in PROMPTS:
        request = Request(prompt=prompt, steps=6, seed=3)
        images += generate(shapes_model, request, watch=lambda latents: seen.append(latents.clone()))
        pictures += colours.pictures(seen[-1])
    assert [tuple(latents.shape) for latents in seen] == [(1, 4, 16, 16)] * 18
    assert all(picture.size == (16, 16) for picture in pictures)
    away = [[np.abs(numbers(one) - numbers(other)).mean() for other in images] for one in pictures]
    assert [row.index(min(row)) for row in away] == [0, 1, 2]


def test_what_is_watched_is_known_early(shapes_model: Model, colours: LatentColours) -> None:
    seen: list[torch.Tensor] = []
    request = Request(prompt=PROMPTS[1], steps=12, seed=3)
    generate(shapes_model, request, watch=lambda latents: seen.append(latents.clone()))
    pictures = [numbers(colours.pictures(latents)[0]) for latents in seen]
    away = [np.abs(picture - pictures[-1]).mean() for picture in pictures]
    assert max(away) < 35 and away[6] < 12, away


def test_watching_changes_nothing(shapes_model: Model) -> None:
    request = Request(prompt="a red circle", steps=3, seed=3)
    (watched,) = generate(shapes_model, request, watch=lambda latents: None)
    (alone,) = generate(shapes_model, request)
    assert watched.tobytes() == alone.tobytes()


def test_latents_of_any_scale_are_pictures(colours: LatentColours) -> None:
    latents = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    (one,), (other,) = colours.pictures(latents * 5), colours.pictures(latents * 50)
    assert one.size == (24, 16)
    assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1
