"""Signals: noted and told between two steps, at once before the first."""

import signal
import sys
from collections.abc import Iterator

import pytest

from difflora.errors import Interrupted
from difflora.training import loop as loop_module
from difflora.training.examples import Examples
from difflora.training.interrupt import stop_request
from difflora.training.loop import train

SAID = "stopping after this step; once more stops at once"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals to oneself are POSIX")


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """Tests that run in the background are started with SIGINT ignored."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


def test_the_first_signal_is_noted_and_told_and_the_second_acts(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), stop_request() as stop:
        assert not stop
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT and SAID in capfd.readouterr().err
        signal.raise_signal(signal.SIGINT)
    assert SAID not in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_signal_of_each_sort_is_one_wish(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_request() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert stop.signal == signal.SIGINT and capfd.readouterr().err.count(SAID) == 1


def test_before_the_first_step_a_signal_ends_the_run_at_once(small, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(examples: Examples) -> None:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the run went on")

    monkeypatch.setattr(Examples, "prepare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(train(small()))


def test_a_signal_in_a_step_ends_the_run_after_it(
    small, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    usual = loop_module._update

    def interrupted(run, step: int) -> None:
        usual(run, step)
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop_module, "_update", interrupted)
    with pytest.raises(Interrupted, match="stopped by SIGINT after step 3 of 6"):
        list(train(small(save_every=100)))
    assert SAID in capfd.readouterr().err
    assert (small().output / "checkpoints" / "small" / "step-00000003").exists()
