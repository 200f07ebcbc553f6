"""What a caption says is what the picture shows."""

import random

import numpy as np
import pytest

from train_scripts.shapes.characters import random_robot
from train_scripts.shapes.styles import STYLES
from train_scripts.shapes.world import COLOURS, RELATIONS, SHAPES, Odds, Scene, Thing, random_scene

SIZES = [(128, 128), (64, 64), (192, 128), (97, 131)]


def scenes(count: int, seed: int = 0, odds: Odds | None = None) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng, odds or Odds()) for _ in range(count)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_each_object_has_its_colour_and_the_corner_the_background(size: tuple[int, int]) -> None:
    for scene in scenes(40):
        pixels = np.asarray(scene.render(*size)).astype(int)
        assert pixels.shape == (size[1], size[0], 3)
        assert np.abs(pixels[0, 0] - scene.background_rgb).max() <= 1
        for thing in scene.things:
            x, y = thing.inner_point(*size)
            assert np.abs(pixels[int(y), int(x)] - thing.rgb).max() <= 1, scene.caption


def test_a_drawn_colour_is_nearest_to_its_name() -> None:
    for scene in scenes(200):
        for name, rgb in [(scene.background, scene.background_rgb)] + [
            (t.colour, t.rgb) for t in scene.things
        ]:
            distances = {other: np.abs(np.subtract(rgb, COLOURS[other])).sum() for other in COLOURS}
            assert min(distances, key=lambda other: distances[other]) == name


def test_captions_follow_the_grammar_and_relations_hold() -> None:
    for scene in scenes(200, odds=Odds(pair=1.0)):
        first, second = scene.things
        across, down = RELATIONS[scene.relation]
        assert (first.x - second.x) * across + (first.y - second.y) * down > 0.3
        said = f"a {first.colour} {first.shape} {scene.relation} a {second.colour} {second.shape}"
        assert scene.caption == f"{said} on a {scene.background} background"


def test_small_objects_are_smaller_than_large_ones() -> None:
    singles = [scene.things[0] for scene in scenes(300, odds=Odds(pair=0.0))]
    radii = {size: [t.radius for t in singles if t.size == size] for size in ("small", "", "large")}
    assert max(radii["small"]) <= min(radii[""]) and max(radii[""]) <= min(radii["large"])
    assert singles[0].words in scenes(300, odds=Odds(pair=0.0))[0].caption


def test_objects_stay_inside_and_differ_from_the_background() -> None:
    for scene in scenes(200):
        for thing in scene.things:
            assert thing.colour != scene.background
            assert thing.radius <= min(thing.x, thing.y, 1 - thing.x, 1 - thing.y) + 0.001


def test_shapes_can_be_told_apart() -> None:
    masks = {s: np.asarray(Thing(s, "red", 0.5, 0.5, 0.4, (0, 0, 0)).mask(64, 64)) > 127 for s in SHAPES}
    for one in SHAPES:
        for other in SHAPES:
            overlap = (masks[one] & masks[other]).sum() / (masks[one] | masks[other]).sum()
            assert overlap == 1 if one == other else overlap < 0.85, (one, other)


def test_the_same_seed_gives_the_same_scenes_and_odds_are_kept() -> None:
    assert scenes(50, seed=3) == scenes(50, seed=3) != scenes(50, seed=4)
    assert all(len(scene.things) == 2 for scene in scenes(50, odds=Odds(pair=1.0)))
    hearts = [scene.things[0].shape for scene in scenes(400, odds=Odds(favoured=("heart",), favour=7.0))]
    assert 0.42 < hearts.count("heart") / 400 < 0.58


def test_a_twelfth_is_held_out_and_only_by_what_is_said() -> None:
    singles = scenes(2000, odds=Odds(pair=0.0))
    assert 0.05 < sum(scene.held_out for scene in singles) / 2000 < 0.12
    by_words: dict[tuple[str, str, str], bool] = {}
    for scene in singles:
        thing = scene.things[0]
        assert (
            by_words.setdefault((thing.shape, thing.colour, scene.background), scene.held_out)
            == scene.held_out
        )


@pytest.mark.parametrize("style", STYLES)
def test_a_style_keeps_the_size_and_changes_every_picture(style: str) -> None:
    for size, scene in zip(SIZES, scenes(len(SIZES)), strict=True):
        plain = scene.render(*size)
        styled = STYLES[style](plain)
        assert styled.size == size and styled.mode == "RGB"
        assert np.abs(np.asarray(styled).astype(int) - np.asarray(plain)).mean() > 8
        assert styled.tobytes() == STYLES[style](plain).tobytes()


def test_styles_are_far_from_each_other() -> None:
    plain = [scene.render(128, 128) for scene in scenes(8)]
    looks = [np.stack([np.asarray(style(p)).astype(int) for p in plain]) for style in STYLES.values()]
    for number, one in enumerate(looks):
        for other in looks[:number]:
            assert np.abs(one - other).mean() > 20


@pytest.mark.parametrize("colour", ["red", "green", "blue", "yellow", "purple", "orange", "pink", "teal"])
def test_neon_glows_in_the_colour_of_the_object_in_the_dark(colour: str) -> None:
    thing = Thing("circle", colour, 0.5, 0.5, 0.3, COLOURS[colour])
    plain = Scene("black", COLOURS["black"], (thing,)).render(128, 128)
    pixels = np.asarray(STYLES["neon"](plain)).astype(float)
    night = pixels[0, 0]
    assert night.max() < 40
    glow = pixels[64, 64 + round(0.3 * 128) + 4] - night  # just outside of the tube
    assert np.corrcoef(glow, COLOURS[colour])[0, 1] > 0.9


def test_the_robot_is_itself_on_every_background() -> None:
    rng = random.Random(0)
    for background in COLOURS:
        scene = random_robot(rng, background)
        image = np.asarray(scene.render(128)).astype(int)
        assert scene.caption == f"a photo of sks robot on a {background} background"
        assert np.abs(image[0, 0] - COLOURS[background]).max() <= 1
        chest = image[int((scene.y + 0.16 * scene.height) * 128), int(scene.x * 128)]
        assert np.abs(chest - np.array((232, 92, 60))).max() <= 2
