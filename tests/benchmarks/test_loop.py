"""The two whole loops that are timed against each other learn the same thing."""

import pytest

from benchmarks import loop


def test_both_loops_train_the_same_and_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "ROUNDS", 3)
    monkeypatch.setattr(loop, "WARMUP", 1)
    monkeypatch.setattr(loop, "STRETCH", 2)
    monkeypatch.setattr(loop, "ALIKE", 0.6)  # so few steps say little of a mean
    row = loop.loop_row()
    assert "batch 8, rank 16" in row.what and row.ratio > 0 and row.goal.startswith("≥ 1.05")


def test_loops_that_learn_something_else_are_no_comparison() -> None:
    loop._require_alike(0.1, 0.11)
    with pytest.raises(AssertionError, match="something else"):
        loop._require_alike(0.1, 0.2)
