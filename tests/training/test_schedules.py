"""The learning rate's course, and how long training lasts."""

import itertools

import pytest

from difflora.training.schedules import SCHEDULES, ScheduleOptions, lr_factor, total_steps


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_rises_through_the_warmup_then_follows_its_course(name) -> None:
    options = ScheduleOptions(steps=100, schedule=name, warmup_steps=10)
    course = [lr_factor(step, 100, options) for step in range(100)]
    assert course[:10] == [(step + 1) / 11 for step in range(10)]
    assert course[10] == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(course[10:]))
    assert course[99] == 1.0 if name == "constant" else 0 < course[99] < 0.02


def test_a_warmup_longer_than_the_run_ends_with_it() -> None:
    options = ScheduleOptions(steps=4, warmup_steps=50)
    assert [lr_factor(step, 4, options) for step in range(4)] == [0.2, 0.4, 0.6, 0.8]


@pytest.mark.parametrize(
    ("epochs", "batches", "accumulation", "wanted"),
    [(1, 10, 1, 10), (2.5, 10, 1, 25), (1, 10, 4, 3), (0.01, 3, 1, 1)],
)
def test_epochs_become_steps(epochs: float, batches: int, accumulation: int, wanted: int) -> None:
    options = ScheduleOptions(epochs=epochs)
    assert total_steps(options, batches_per_epoch=batches, accumulation=accumulation) == wanted
