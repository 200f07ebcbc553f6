"""The real worker process dies or is ended in the middle of real jobs: nothing but the job in hand is lost,
and of a training not even that."""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from difflora import Request, configure, read, read_recipe, train
from tests.webui.serving import ROOT, SHAPES, serve
from webui.app import Flags, main
from webui.jobs import Job, Jobs
from webui.settings import Settings
from webui.work.draw import Draw
from webui.work.training import Training
from webui.worker import Supervisor

STEPS = 20
OPTIONS: Mapping[str, Any] = {
    "preset": "style",
    "base_model": str(SHAPES),
    "data": str(ROOT / "sample_data" / "styles" / "halftone"),
    "name": "rings",
    "steps": STEPS,
    "rank": 2,
    "targets": "mid_block.*attn2",
}


@dataclass(frozen=True)
class Server:
    """What a page's process holds: the queue, and the supervisor of the worker."""

    jobs: Jobs
    settings: Settings
    supervisor: Supervisor

    @property
    def worker(self) -> int:
        process = self.supervisor._process
        assert process is not None
        return process.pid

    def draw(self, steps: int) -> Job:
        asked = Draw(base=str(SHAPES), request=Request(prompt="a red circle", steps=steps, seed=1))
        return self.jobs.submit("ann", "generate", asked.model_dump_json())

    def train(self, **options: Any) -> Job:
        asked = Training(options={**OPTIONS, **options})
        return self.jobs.submit("ann", "train", asked.model_dump_json())

    def at_step(self, job: Job, step: int) -> None:
        """Waits until a job has done so many steps."""
        for now in self.jobs.follow(job):
            assert not now.is_over, (now.state, now.error)
            if now.done >= step:
                return

    def end(self, job: Job) -> Job:
        """The job when it is over."""
        return [now for now in self.jobs.follow(job)][-1]

    def kill(self) -> None:
        os.kill(self.worker, signal.SIGKILL)


def server(output: Path) -> Server:
    settings = Settings(str(SHAPES), "", output)
    settings.prepare()
    jobs = Jobs(settings.jobs)
    supervisor = Supervisor(jobs, settings)
    supervisor.start()
    while supervisor._process is None:
        time.sleep(0.01)
    return Server(jobs, settings, supervisor)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    found = server(tmp_path)
    yield found
    found.supervisor.stop()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The data hash of the adapter of a run that nothing has disturbed."""
    output = tmp_path_factory.mktemp("uninterrupted")
    assert len(list(train(configure({**OPTIONS, "output": output})))) == STEPS
    return read(output / "rings.safetensors").data_hash


def trained(found: Server) -> str:
    return read(found.settings.adapters / "rings.safetensors").data_hash


def first_step(job: Job) -> int:
    """The step that the worker which finished a training has begun with."""
    return int(json.loads(job.result)["loss"][0][0])


def test_a_drawing_whose_worker_is_killed_fails_in_words_and_the_next_is_drawn(served: Server) -> None:
    first, second = served.draw(steps=400), served.draw(steps=2)
    served.at_step(first, 2)
    before = served.worker
    served.kill()
    failed = served.end(first)
    assert failed.state == "failed" and "the worker process ended by itself (SIGKILL)" in failed.error
    assert "Most often memory has run out" in failed.error
    done = served.end(second)
    assert done.state == "done" and served.worker != before
    assert read_recipe(served.jobs.place(done) / done.files[0]).request.steps == 2


def test_a_training_that_a_restart_interrupts_goes_on_with_the_next_server(
    tmp_path: Path, uninterrupted: str
) -> None:
    first = server(tmp_path)
    job = first.train(save_every=1000)
    first.at_step(job, 3)
    first.supervisor.stop()
    assert first.jobs.get(job.number, "ann").state == "waiting"
    assert not (first.settings.adapters / "rings.safetensors").exists()
    second = server(tmp_path)
    try:
        seen = list(second.jobs.follow(job))
    finally:
        second.supervisor.stop()
    done = seen[-1]
    assert done.state == "done" and min(now.done for now in seen if now.done) > 3
    assert [step for step, _ in json.loads(done.result)["loss"]] == list(range(1, STEPS + 1))
    assert trained(second) == uninterrupted


@pytest.mark.slow
def test_a_training_anew_that_a_restart_interrupts_is_not_begun_anew_again(
    tmp_path: Path, uninterrupted: str
) -> None:
    first = server(tmp_path)
    assert first.end(first.train()).state == "done"
    job = first.train(save_every=1000, overwrite=True)
    first.at_step(job, 3)
    first.supervisor.stop()
    second = server(tmp_path)
    try:
        seen = list(second.jobs.follow(job))
    finally:
        second.supervisor.stop()
    assert seen[-1].state == "done" and min(now.done for now in seen if now.done) > 3
    assert trained(second) == uninterrupted


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGTERM")
def test_a_page_that_a_service_manager_ends_puts_its_drawing_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(tmp_path) as site:  # ended by SIGTERM, as systemd and docker do
        jobs = Jobs(Settings("", "", tmp_path).jobs)
        request = Request(prompt="a red circle", steps=400, seed=1)
        asked = Draw(base=str(SHAPES), request=request, count=64)
        job = jobs.submit("local", "generate", asked.model_dump_json())
        for now in jobs.follow(job):
            assert not now.is_over, now.error
            if now.done >= 2:
                break
        assert main(Flags(port=0, output=tmp_path)) == 1
        assert "another page works in" in capsys.readouterr().err
        port = int(site.url.rstrip("/").rpartition(":")[2])
        assert main(Flags(port=port, output=tmp_path / "else")) == 1
        assert "cannot be used" in capsys.readouterr().err
        assert jobs.get(job.number, "local").state == "running", "neither has touched what this one does"
    assert jobs.get(job.number, "local").state == "waiting"


def test_a_training_whose_worker_is_killed_goes_on_from_its_newest_checkpoint(
    served: Server, uninterrupted: str
) -> None:
    job = served.train(save_every=3)
    served.at_step(job, 8)
    served.kill()
    failed = served.end(job)
    assert failed.state == "failed" and "goes on from its newest checkpoint" in failed.error
    again = served.end(served.train(save_every=3))
    assert again.state == "done" and first_step(again) >= 7 and first_step(again) % 3 == 1
    assert trained(served) == uninterrupted
