"""What fails in the middle of a run costs no step that was sound, and nothing that was there before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from difflora.errors import ConfigError, TrainingError
from difflora.training import loop as loop_module
from difflora.training import run as run_module
from difflora.training.config import TrainConfig
from difflora.training.loop import train
from difflora.training.machine import Machine

FULL = torch.OutOfMemoryError("CUDA out of memory")


def saved(config: TrainConfig) -> list[str]:
    folder = config.output / "checkpoints" / config.name
    return sorted(found.name for found in folder.glob("step-*"))


def failing(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, call: int, error: Exception
) -> None:
    """Lets the `call`-th call of a function raise, after it has done its work."""
    usual: Callable[..., Any] = getattr(owner, name)
    calls: list[None] = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        done = usual(*args, **kwargs)
        if len(calls) == call:
            raise error
        return done

    monkeypatch.setattr(owner, name, wrapped)


def ended(config: TrainConfig, error: type[Exception]) -> BaseException:
    with pytest.raises(error) as caught:
        list(train(config))
    return caught.value


@pytest.fixture
def whole(small, tmp_path: Path) -> bytes:
    """The file of a run that nothing disturbs."""
    (*_, last) = train(small(output=tmp_path / "whole"))
    return last.adapter.read_bytes()


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(loop_module, "_backward", 4), (loop_module, "clip", 4), (run_module.Run, "log", 3)],
)
def test_a_step_that_fails_saves_the_one_before(
    small, whole: bytes, owner: object, name: str, call: int
) -> None:
    config = small(save_every=100)
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, owner, name, call=call, error=FULL)
        error = ended(config, torch.OutOfMemoryError)
    assert saved(config) == ["step-00000003"]
    assert "The state after step 3 was saved" in "".join(error.__notes__)
    reports = list(train(config))
    assert reports[0].step == 4 and reports[-1].adapter is not None
    assert reports[-1].adapter.read_bytes() == whole


def test_the_first_step_that_fails_has_nothing_to_save(small, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, loop_module, "_backward", call=1, error=FULL)
    ended(small(), torch.OutOfMemoryError)
    assert not saved(small())


def test_an_update_that_fails_half_way_is_not_saved(small, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, torch.optim.AdamW, "step", call=4, error=FULL)
    config = small(save_every=2)
    ended(config, torch.OutOfMemoryError)
    assert saved(config) == ["step-00000002"]


def test_a_divergence_saves_nothing_and_names_the_checkpoint_that_is_there(
    small, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = loop_module._backward
    calls: list[None] = []

    def diverging(*args: Any) -> torch.Tensor:
        calls.append(None)
        return usual(*args) * (float("inf") if len(calls) == 4 else 1)

    monkeypatch.setattr(loop_module, "_backward", diverging)
    error = ended(small(save_every=2), TrainingError)
    assert "step 4 of 6" in str(error) and "The checkpoint of step 2 in" in str(error)
    assert saved(small()) == ["step-00000002"]


@pytest.mark.parametrize("error", [FULL, OSError(28, "No space left on device"), ValueError("odd")])
def test_a_preview_that_fails_becomes_a_note_and_the_training_goes_on(
    small, whole: bytes, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, run_module, "draw_previews", call=2, error=error)
    config = small(preview_every=2, preview_count=1, preview_steps=1, save_every=100)
    reports = list(train(config))
    assert [len(report.previews) for report in reports] == [0, 1, 0, 0, 0, 1]
    (note,) = [note for report in reports for note in report.notes]
    assert reports[3].notes == (note,) and "no previews after step 4" in note and str(error) in note
    assert reports[-1].adapter is not None and reports[-1].adapter.read_bytes() == whole


def test_room_for_a_preview_that_is_not_there_becomes_a_note_too(
    small, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, run_module, "_move", call=4, error=FULL)  # three before the first step
    reports = list(train(small(preview_every=3, preview_count=1, preview_steps=1)))
    assert "no previews after step 3" in reports[2].notes[0] and len(reports[5].previews) == 1


def test_a_caption_that_cannot_be_drawn_is_told_before_the_base_is_loaded(
    small, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(run_module, "load", refuse)
    with pytest.raises(ConfigError, match=r"(?s)preview 1, 'a .x07 hat'.*U\+0007"):
        next(train(small(caption="a \x07 hat", preview_every=2)))


def test_overwriting_touches_nothing_before_a_step_is_done(small, monkeypatch: pytest.MonkeyPatch) -> None:
    (*_, last) = train(small())
    before = last.adapter.read_bytes()
    reports = train(small(overwrite=True))
    next(reports)
    reports.close()
    assert saved(small()) == ["step-00000001"]
    last.adapter.write_bytes(before)
    ended(small(overwrite=True, targets="nothing of that name"), ConfigError)
    failing(monkeypatch, loop_module, "_backward", call=1, error=FULL)
    ended(small(overwrite=True), torch.OutOfMemoryError)
    assert saved(small()) == ["step-00000001"] and last.adapter.read_bytes() == before


def test_an_overwriting_run_says_where_the_adapter_lies_that_it_replaces(small) -> None:
    (*_, last) = train(small())
    reports = list(train(small(overwrite=True)))
    assert reports[0].notes == (
        f"{last.adapter} is kept as {last.adapter}.replaced until this training has finished",
    )
    assert not any(report.notes for report in list(train(small(name="other", overwrite=True))))


@pytest.mark.parametrize("is_main", [True, False])
def test_every_process_waits_for_the_same_checkpoints(
    small, monkeypatch: pytest.MonkeyPatch, is_main: bool
) -> None:
    """Also those that write nothing: one that waited for one more would wait for ever."""
    steps: list[int] = []

    def note(run: run_module.Run, step: int) -> Path | None:
        steps.append(step)
        return usual(run, step)

    usual = run_module.Run.checkpoint
    monkeypatch.setattr(run_module.Run, "checkpoint", note)
    monkeypatch.setattr(Machine, "is_main", property(lambda machine: is_main))
    for stop in (2, 3, 6):
        reports = train(small(save_every=2, name=f"to{stop}"))
        for _ in range(stop):
            next(reports)
        reports.close()
    assert steps == [2, *(2, 3), *(2, 4)]
