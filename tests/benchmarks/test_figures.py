"""How figures are computed, told and kept."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.__main__ import PARTS
from benchmarks.base_quality import Judged, prompt_rows
from benchmarks.exam import LOOKS, OTHER, ROBOT, Seen
from benchmarks.known import accuracy, decibels, looks, spoiled
from benchmarks.learning import lessons, rises
from benchmarks.painter import Drawn
from benchmarks.report import RESULTS, Part, Section, Share, held, keep, kept, markdown, share, with_goal
from benchmarks.unasked import drift

SAMPLES = Path(__file__).parents[2] / "sample_data"
STAR = Seen("red", "one", ("star",), ("blue",))


def flat(level: int) -> Image.Image:
    return Image.fromarray(np.full((16, 16, 3), level, dtype=np.uint8))


def test_decibels_and_drift_of_known_pictures() -> None:
    assert decibels(flat(10), flat(10)) == math.inf
    assert decibels(flat(0), flat(255)) == pytest.approx(0.0, abs=1e-6)
    assert decibels(flat(100), flat(110)) == pytest.approx(20 * math.log10(255 / 10), abs=1e-4)
    assert drift(flat(100), flat(110)) == 10.0


def test_a_share_and_its_goal() -> None:
    assert str(share([True, True, False, True])) == "75 % (3 of 4)"
    assert str(Share(0, 0)) == "none asked"
    assert held(0.9, "≥ 0.9") == "≥ 0.9: met" and held(0.89, "≥ 0.9") == "≥ 0.9: missed"
    assert held(3.1, "≤ 3 s") == "≤ 3 s: missed" and held(27.5, "≥ 27 dB") == "≥ 27 dB: met"
    assert held(0.1, "") == ""
    assert with_goal(Share(1, 2), "≤ 0.05") == "50 % (1 of 2), ≤ 0.05: missed"
    assert with_goal(Share(1, 2), "") == "50 % (1 of 2)"


def test_rising_is_never_falling_and_ends_higher() -> None:
    assert rises([0.0, 0.0, 0.4, 0.4, 1.0])
    assert not rises([0.0, 0.5, 0.4, 1.0])
    assert not rises([0.5, 0.5, 0.5])


def test_prompt_rows_count_each_thing_apart() -> None:
    wrong_colour = Seen("red", "one", ("star",), ("teal",))
    two_objects = Seen("red", "row", ("star", "star"), ("blue", "blue"))
    verdicts = [Judged("a", STAR, seen) for seen in (STAR, wrong_colour, two_objects, STAR)]
    rows = {what: (figure, goal) for what, figure, goal in prompt_rows("x", verdicts, goal="≥ 0.9")}
    assert rows["x: shapes and colours right"] == ("50 % (2 of 4)", "≥ 0.9: missed")
    assert rows["x: shapes right"][0] == "75 % (3 of 4)"
    assert rows["x: colours right"][0] == "50 % (2 of 4)"
    assert rows["x: background right"][0] == "100 % (4 of 4)"


def test_colours_that_a_look_hides_are_left_out_of_the_share() -> None:
    neon = [Seen("red", "one", ("star",), (colour,), look="neon") for colour in ("white", "blue")]
    drawn = Drawn([], [Seen("black", "one", ("star",), ("blue",), look="neon")] * 2)
    assert drawn.carrying("neon") == Share(2, 2)
    assert drawn.right(neon, ("first colour", "second colour")) == Share(1, 1)
    assert drawn.right(neon, ("layout", "first shape")) == Share(2, 2)


def test_accuracy_asks_what_is_shown() -> None:
    robot = Seen("red", subject=ROBOT)
    told = accuracy([STAR, robot], [STAR, robot])
    assert told["first shape"] == told["whole picture"] == "100 %" and told["second shape"] == "–"
    assert accuracy([robot], [STAR])["first shape"] == "0 %"


def test_spoiled_pictures_have_something_that_is_not_of_the_world() -> None:
    assert all(OTHER in (*seen.shapes, *seen.colours) for _, seen in spoiled(3))
    assert [seen for _, seen in spoiled(3)] == [seen for _, seen in spoiled(3)]


def test_every_look_has_pictures_and_every_style_a_lesson() -> None:
    pictures = looks(2)
    assert set(pictures) == {*LOOKS, ROBOT}
    assert all(seen.look == look for look in LOOKS for seen in pictures[look][1])
    assert {lesson.name for lesson in lessons(SAMPLES)} == {*LOOKS[1:], ROBOT}


def test_parts_are_kept_apart_and_told_in_order(tmp_path: Path) -> None:
    table = Section("Speed", "how", ("what", "figure"), (("a step", "3 ms"),))
    first, second = Part("a", ("one machine",), (table,)), Part("b", ("another",), (table, table))
    keep(second, tmp_path)
    keep(first, tmp_path)
    assert kept(["a", "missing", "b"], tmp_path) == [first, second]
    page = markdown([first, second])
    assert page.count("| a step | 3 ms |") == 3 and page.index("one machine") < page.index("another")


def test_the_page_of_results_is_what_the_parts_say() -> None:
    assert RESULTS.read_text(encoding="utf-8") == markdown(kept(tuple(PARTS)))
