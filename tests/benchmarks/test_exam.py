"""What pictures are said to show, as classes and back."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.exam import (
    EDGE,
    HEADS,
    OTHER,
    ROBOT,
    UNKNOWN,
    Seen,
    answers,
    classes,
    held_out_scenes,
    in_reading_order,
    lessons,
    said,
    seen_from,
)
from benchmarks.learning import style_scenes, taught_captions, triples
from benchmarks.subject import subject_prompts
from train_scripts.shapes.styles import STYLES
from train_scripts.shapes.unet import training_scenes
from train_scripts.shapes.world import COLOURS, Odds, random_scene

SAMPLES = Path(__file__).parents[2] / "sample_data"


@pytest.mark.parametrize("pairs", [False, True])
def test_classes_say_what_the_scene_says(pairs: bool) -> None:
    for scene in held_out_scenes(40, pairs=pairs):
        wanted = said(scene)
        full = {head: max(number, 0) for head, number in classes(wanted).items()}
        assert seen_from(full) == wanted
        assert all(answers(wanted, wanted).values())


def test_the_first_object_is_the_left_or_the_upper_one() -> None:
    rng = random.Random(0)
    for scene in (random_scene(rng, Odds(pair=1.0)) for _ in range(60)):
        first, second = in_reading_order(scene)
        assert first.x < second.x - 0.3 or first.y < second.y - 0.3
        if scene.relation in ("left of", "above"):
            assert (first, second) == scene.things
        else:
            assert (second, first) == scene.things


def test_what_a_look_hides_is_not_asked() -> None:
    seen = Seen("red", "one", ("star",), ("white",))
    known = {
        look: {h for h, n in classes(replace(seen, look=look)).items() if n != UNKNOWN}
        for look in HEADS["look"]
    }
    assert known["plain"] == {"background", "layout", "first shape", "first colour", "look", "subject"}
    assert known["plain"] - known["neon"] == {"background", "first colour"}
    assert known["plain"] - known["sketch"] == {"background"}
    assert known["halftone"] == known["mosaic"] == known["plain"]


def test_a_robot_has_a_background_and_no_shapes() -> None:
    robot = Seen("red", subject=ROBOT)
    assert {head for head, number in classes(robot).items() if number != UNKNOWN} == {
        "background",
        "look",
        "subject",
    }
    assert answers(Seen("red", "one", ("star",), ("blue",)), robot) == {
        "background": True,
        "look": True,
        "subject": False,
    }


def test_answers_name_what_is_wrong() -> None:
    wanted = Seen("red", "row", ("star", "ring"), ("blue", "teal"))
    seen = replace(wanted, shapes=("ring", "star"), look="neon")
    wrong = {head for head, right in answers(seen, wanted).items() if not right}
    assert wrong == {"first shape", "second shape", "look"}


@pytest.mark.parametrize("pairs", [False, True])
def test_prompts_are_held_out_and_distinct(pairs: bool) -> None:
    scenes = held_out_scenes(100, pairs=pairs)
    assert all(scene.held_out and len(scene.things) == 1 + pairs for scene in scenes)
    assert len({scene.caption for scene in scenes}) == 100
    assert scenes[:20] == held_out_scenes(20, pairs=pairs)
    assert not {scene.caption for scene in scenes} & {
        scene.caption for scene in training_scenes(3000, seed=2)
    }


def test_where_there_are_fewer_captions_than_asked_for_they_come_again() -> None:
    scenes = held_out_scenes(400, pairs=False)
    captions = [scene.caption for scene in scenes]
    assert scenes[:100] == held_out_scenes(100, pairs=False)
    assert len(captions) == 400 and max(map(captions.count, captions)) <= 4


@pytest.mark.parametrize("style", STYLES)
def test_prompts_of_a_style_are_not_captions_of_its_folder(style: str) -> None:
    taught = taught_captions(SAMPLES / "styles" / style, style)
    assert len(taught) > 15 and not any(style in caption for caption in taught)
    captions = [scene.caption for scene in style_scenes(60, taught)]
    assert len(set(captions)) == 60
    sizes = {
        form.replace("a ", f"a {size}", 1)
        for form in map(plain, captions)
        for size in ("", "small ", "large ")
    }
    assert not sizes & taught


def test_prompts_of_a_style_show_nothing_that_its_folder_shows_beside_something_else() -> None:
    pair = "a small red star left of a blue ring on a green background"
    assert triples(pair) == [("star", "red", "green"), ("ring", "blue", "green")]
    scenes = style_scenes(20, ())
    taught = [f"a pink heart above {scene.caption}" for scene in scenes[:5]]
    asked = {triples(scene.caption)[0] for scene in style_scenes(20, taught)}
    assert not asked & {triples(scene.caption)[0] for scene in scenes[:5]} and len(asked) > 10


def plain(caption: str) -> str:
    return caption.replace("small ", "").replace("large ", "")


def test_prompts_of_the_subject_are_new_but_for_one_sort() -> None:
    folder = {file.read_text().strip() for file in (SAMPLES / "subjects" / "robot").glob("*.txt")}
    sorts = subject_prompts(24)
    assert all(len(pairs) == 24 for pairs in sorts.values())
    known = {sort: {prompt for prompt, _ in pairs} & folder for sort, pairs in sorts.items()}
    assert known.pop("backgrounds of the folder") == folder
    assert not any(known.values())
    assert all(place in COLOURS and place in prompt for pairs in sorts.values() for prompt, place in pairs)


def test_lessons_show_everything_and_are_the_same_again() -> None:
    given = list(lessons(200, seed="test"))
    assert all(image.size == (EDGE, EDGE) and image.mode == "RGB" for image, _ in given)
    seen = [one for _, one in given]
    assert {one.look for one in seen} == set(HEADS["look"])
    assert {one.subject for one in seen} == set(HEADS["subject"])
    assert any(OTHER in one.shapes for one in seen) and any(OTHER in one.colours for one in seen)
    again = list(lessons(5, seed="test"))
    assert [one for _, one in again] == seen[:5]
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(again, given, strict=False))
