"""SIGKILL at random points: the same command continues, and the file has the bytes of an uninterrupted
run."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

from difflora.training.config import TrainConfig
from tests.training.processes import run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL and no forkserver")


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """A process that has imported everything already: each run forks from it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.processes"])
    return context


def _start(server: ForkServerContext, config: TrainConfig, path: Path) -> ForkServerProcess:
    path.write_text(config.model_dump_json())
    process = server.Process(target=run, args=(path,))
    process.start()
    return process


def _finish(server: ForkServerContext, config: TrainConfig, path: Path) -> bytes:
    process = _start(server, config, path)
    process.join(timeout=120)
    assert process.exitcode == 0
    return (config.output / f"{config.name}.safetensors").read_bytes()


def _wait_for_checkpoint(process: ForkServerProcess, config: TrainConfig) -> None:
    while process.is_alive() and not list((config.output / "checkpoints" / "small").glob("step-*")):
        time.sleep(0.002)


def _kill_and_resume(server: ForkServerContext, small, tmp_path: Path, *, kills: int, seed: int) -> None:
    source = random.Random(seed)
    options = {"steps": 24, "save_every": 2, "train_text_encoder": True}
    whole = small(output=tmp_path / "whole", **options)
    process = _start(server, whole, tmp_path / "whole.json")
    _wait_for_checkpoint(process, whole)
    started = time.monotonic()
    process.join()
    span = time.monotonic() - started
    wanted = (whole.output / "small.safetensors").read_bytes()
    config = small(**options)
    finished = config.output / "small.safetensors"
    done = 0
    while done < kills:
        process = _start(server, config, tmp_path / "killed.json")
        _wait_for_checkpoint(process, config)
        time.sleep(source.uniform(0.0, 0.6 * span))
        if finished.exists():  # this one got through: begin again
            process.join()
            assert finished.read_bytes() == wanted
            finished.unlink()
            continue
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        done += 1
    if finished.exists():
        assert finished.read_bytes() == wanted
    else:
        assert _finish(server, config, tmp_path / "killed.json") == wanted
    assert not list(config.output.rglob(".partial-*"))
    assert not [path for path in config.output.rglob("*") if path.suffix == ".tmp"]
    record = json.loads((config.output / "small.training.json").read_text())
    assert record["steps"] == 24


def test_three_kills(server: ForkServerContext, small, tmp_path: Path) -> None:
    _kill_and_resume(server, small, tmp_path, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_twenty_kills(server: ForkServerContext, small, tmp_path: Path, seed: int) -> None:
    _kill_and_resume(server, small, tmp_path, kills=5, seed=100 + seed)
