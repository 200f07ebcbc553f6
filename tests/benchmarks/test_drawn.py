"""Base, style and subject are drawn and judged from end to end, with few steps and a judge that knows
nothing."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.base_quality import BaseQuality, base_sections
from benchmarks.drawing import Drawing, draw
from benchmarks.exam import HEADS
from benchmarks.judge import Judge, new_net
from benchmarks.learning import (
    BLEND_COLUMNS,
    STYLE_COLUMNS,
    WEIGHTS,
    blend_row,
    style_figures,
    style_row,
)
from benchmarks.painter import Painter
from benchmarks.peers import random_adapter
from benchmarks.subject import subject_section
from benchmarks.unasked import unasked_section
from difflora.families.model import Model

SAMPLES = Path(__file__).parents[2] / "sample_data"
QUICK = Drawing(guidance=2.0, steps=2, batch=2)


@pytest.fixture(scope="module")
def paint(shapes_model: Model) -> Painter:
    return Painter(shapes_model, Judge(new_net(0)), QUICK)


def test_pictures_do_not_depend_on_the_batch_they_were_drawn_in(shapes_model: Model) -> None:
    prompts = [
        "a red star on a blue background",
        "a teal ring on a pink background",
        "a blue heart on a red background",
    ]
    together, first = draw(shapes_model, prompts, QUICK), draw(shapes_model, prompts[:1], QUICK)
    assert len(together) == 3
    assert np.abs(np.asarray(together[0], float) - np.asarray(first[0], float)).max() <= 1
    assert not np.array_equal(together[0], together[2])


def test_the_base_is_measured(paint: Painter, tmp_path: Path) -> None:
    options = BaseQuality(QUICK, singles=2, pairs=2, pictures=2, timings=2)
    drawn, vae, judge = base_sections(
        paint.model, paint.judge, options, clip=tmp_path / "no clip", output=tmp_path
    )
    figures = {what: figure for what, figure, _ in drawn.rows}
    assert figures["one object: all right"].endswith("of 2)") and figures["two objects: all right"].endswith(
        "of 2)"
    )
    assert [row[0] for row in vae.rows] == [*HEADS["look"], "robot"]
    assert all(len(row) == len(judge.columns) for row in judge.rows)
    assert (tmp_path / "base_sheet.png").exists() and (tmp_path / "base_misses.json").exists()


def test_a_style_is_measured_at_every_weight_and_without_its_words(paint: Painter) -> None:
    adapter = random_adapter(paint.model, 1, rank=2)
    figures = style_figures(paint, adapter, "neon", SAMPLES / "styles" / "neon", 2)
    assert tuple(figures.by_weight) == WEIGHTS
    pixels = [np.asarray(drawn.images[0], float) for drawn in figures.by_weight.values()]
    assert not any(np.array_equal(one, two) for one, two in pairwise(pixels))
    assert len(style_row(figures)) == len(STYLE_COLUMNS) and len(blend_row(figures)) == len(BLEND_COLUMNS)
    without = unasked_section([figures.unasked])
    assert len(without.rows[0]) == len(without.columns) and float(without.rows[0][-1]) > 0


def test_a_subject_is_measured_for_every_sort_of_prompt(paint: Painter, tmp_path: Path) -> None:
    adapter = random_adapter(paint.model, 1, rank=2)
    section = subject_section(paint, adapter, 2, tmp_path)
    assert section.rows[0][0] == "unseen backgrounds"
    assert all(len(row) == len(section.columns) for row in section.rows) and len(section.rows) == 3
    assert len(list(tmp_path.glob("judged_*.png"))) == 3
