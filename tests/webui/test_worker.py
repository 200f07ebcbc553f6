"""The worker: however a job ends, it says so, and the next one is unaffected."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from difflora import DiffloraError, Request, read_recipe, write
from difflora.library import library
from tests.webui.serving import random_adapter
from webui import worker
from webui.jobs import Job, Jobs
from webui.settings import Settings
from webui.work import WORK, Desk, Done, Work, desk
from webui.work.contact import Contact, SheetAxis, cell_name
from webui.work.desk import Bases, Cancelled, Ended, MixRow
from webui.work.draw import Draw
from webui.worker import Supervisor, do


class Wanted(BaseModel):
    how: str = "well"


def act(wanted: Wanted, desk: Desk) -> Done:
    if wanted.how == "wrong":
        raise DiffloraError("the base is not there. Give another.")
    if wanted.how == "badly":
        raise ZeroDivisionError("division by zero")
    if wanted.how == "memory":
        raise MemoryError
    if wanted.how == "host memory":
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried"
        )
    if wanted.how == "real memory":
        torch.empty(1 << 50)
    if wanted.how == "signal":
        raise Ended
    for step in range(5):
        desk.progress(step, 5)
    (desk.folder / "a.txt").write_text("made")
    return Done(("a.txt",), json.dumps({"ok": True}))


WORKS = {"act": Work(Wanted, act)}


def ended(jobs: Jobs, settings: Settings, kind: str, wanted: BaseModel, bases: Bases | None = None) -> Job:
    """The job of a request, when a real worker has done it."""
    number = jobs.submit("ann", kind, wanted.model_dump_json()).number
    job = jobs.claim()
    assert job is not None and job.number == number
    do(job, Desk(job, jobs, settings, bases or Bases()), works=WORK)
    return jobs.get(number, "ann")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = Settings("", "", tmp_path)
    found.prepare()
    return found


@pytest.fixture
def run(settings: Settings) -> Callable[..., Job]:
    jobs = Jobs(settings.jobs)

    def run_one(how: str, *, cancel: bool = False, kind: str = "act", request: str | None = None) -> Job:
        number = jobs.submit("ann", kind, request or Wanted(how=how).model_dump_json()).number
        job = jobs.claim()
        assert job is not None and job.number == number
        if cancel:
            jobs.cancel(number, "ann")
        do(job, Desk(job, jobs, settings, Bases()), works=WORKS)
        return jobs.get(number, "ann")

    return run_one


def test_a_job_that_is_done_has_its_files(run: Callable[..., Job], settings: Settings) -> None:
    job = run("well")
    assert (job.state, job.files, json.loads(job.result)) == ("done", ("a.txt",), {"ok": True})
    assert (Jobs(settings.jobs).place(job) / "a.txt").read_text() == "made"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("wrong", "the base is not there. Give another."),
        ("badly", "ZeroDivisionError: division by zero (see the log)"),
        ("memory", "out of memory"),
        ("host memory", "out of memory"),
        ("real memory", "out of memory"),
    ],
)
def test_a_failed_job_says_why_and_the_next_one_is_done(
    run: Callable[..., Job], how: str, words: str
) -> None:
    failed = run(how)
    assert failed.state == "failed" and words in failed.error
    assert run("well").state == "done"


def test_a_request_that_cannot_be_read_fails_alone(run: Callable[..., Job]) -> None:
    assert run("", request="[]").state == "failed"
    assert run("", kind="unknown").state == "failed"
    assert run("well").state == "done"


def test_cancelling_stops_at_the_next_step(run: Callable[..., Job], settings: Settings) -> None:
    job = run("well", cancel=True)
    assert job.state == "cancelled" and not (Jobs(settings.jobs).place(job) / "a.txt").exists()


def test_a_job_whose_page_has_gone_is_left_to_the_next_one(settings: Settings) -> None:
    jobs = Jobs(settings.jobs)
    jobs.submit("ann", "act", Wanted().model_dump_json())
    job = jobs.claim()
    assert job is not None
    with pytest.raises(Ended):
        do(job, Desk(job, jobs, settings, Bases(), is_wanted=lambda: False), works=WORKS)
    assert jobs.get(job.number, "ann").state == "running", "the next page finds it so, and settles it"


def test_another_weight_loads_neither_the_base_nor_the_adapter_again(
    settings: Settings, shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []

    def counted(what: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **more: loads.append(given[0]) or what(*given, **more)

    write(random_adapter("dots", 0), settings.adapters / "dots.safetensors")
    monkeypatch.setattr(desk, "load", counted(desk.load))
    monkeypatch.setattr(library, "read", counted(library.read))
    jobs, bases = Jobs(settings.jobs), Bases()
    pictures = set()
    for weight in (0.0, 0.5, 1.0):
        request = Request(prompt="a ring", steps=1, seed=1)
        mix = (MixRow(name="dots", unet=weight),)
        asked = Draw(base=str(shapes_folder), request=request, mix=mix)
        done = ended(jobs, settings, "generate", asked, bases)
        assert done.state == "done", done.error
        pictures.add((jobs.place(done) / done.files[0]).read_bytes())
    assert len(loads) == 2 and len(pictures) == 3, loads


def test_a_tag_in_the_prompt_of_a_sheet_joins_its_mix(settings: Settings, shapes_folder: Path) -> None:
    for seed, name in enumerate(("dots", "glow")):
        write(random_adapter(name, seed), settings.adapters / f"{name}.safetensors")
    wanted = Contact(
        base=str(shapes_folder),
        request=Request(prompt="a ring <lora:glow:0.25>", steps=1, seed=1, batch=2),
        mix=(MixRow(name="dots"),),
        axes=(SheetAxis(name="weight", values=(0.0, 1.0), adapter="dots"),),
    )
    jobs = Jobs(settings.jobs)
    done = ended(jobs, settings, "grid", wanted)
    recipe = read_recipe(jobs.place(done) / cell_name(0, 1))
    assert {one.name: one.unet for one in recipe.adapters} == {"dots": 1.0, "glow": 0.25}


def test_the_axis_of_a_sheet_is_a_row_of_the_mix_wherever_its_file_lies(
    settings: Settings, shapes_folder: Path
) -> None:
    (settings.adapters / "looks").mkdir()
    write(random_adapter("dots", 0), settings.adapters / "looks" / "dots.safetensors")
    wanted = Contact(
        base=str(shapes_folder),
        request=Request(prompt="a ring", steps=1, seed=1, batch=2),
        mix=(MixRow(name="looks/dots"),),
        axes=(SheetAxis(name="weight", values=(0.0, 0.5), adapter="looks/dots"),),
    )
    jobs = Jobs(settings.jobs)
    done = ended(jobs, settings, "grid", wanted)
    assert done.state == "done", done.error
    recipe = read_recipe(jobs.place(done) / cell_name(0, 1))
    assert {one.name: one.unet for one in recipe.adapters} == {"dots": 0.5}


def test_a_drawing_that_waits_does_not_go_on_with_another_adapter_of_that_name(
    settings: Settings, shapes_folder: Path
) -> None:
    file = settings.adapters / "dots.safetensors"
    write(random_adapter("dots", 0), file)
    jobs = Jobs(settings.jobs)
    mix = (MixRow(name="dots"), MixRow(name="off", on=False))
    asked = Draw(base=str(shapes_folder), request=Request(prompt="a ring", steps=1), mix=mix)
    asked = asked.pinned(library.Library(settings.adapters))
    assert [name for name, _ in asked.files] == ["dots"]
    bases = Bases()  # whose list of files is older than what happens to them
    ends = [ended(jobs, settings, "generate", asked, bases)]
    write(random_adapter("dots", 1), file)
    ends += [ended(jobs, settings, "generate", asked, bases) for _ in range(2)]
    assert [one.state for one in ends] == ["done", "failed", "failed"]
    assert "dots was changed after this was asked for" in ends[1].error
    file.unlink()
    assert "is called 'dots'" in ended(jobs, settings, "generate", asked, bases).error


def test_what_was_kept_is_told(settings: Settings) -> None:
    jobs = Jobs(settings.jobs)
    jobs.submit("ann", "act", "{}")
    job = jobs.claim()
    assert job is not None

    def stopped(wanted: Wanted, desk: Desk) -> Done:
        raise Cancelled("stopped after step 3, the state is saved")

    do(job, Desk(job, jobs, settings, Bases()), works={"act": Work(Wanted, stopped)})
    assert jobs.get(job.number, "ann").note == "stopped after step 3, the state is saved"


def test_a_worker_that_is_asked_to_end_puts_its_job_back(run: Callable[..., Job], settings: Settings) -> None:
    with pytest.raises(Ended):
        run("signal")
    job = Jobs(settings.jobs).claim()
    assert job is not None and job.number == 1


def test_a_worker_that_dies_costs_one_job(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(settings.jobs)
    first, second = (jobs.submit("ann", "act", "{}") for _ in range(2))
    # Claims a job; dies with the first one, does the second one.
    code = (
        "import os, sys, time; from pathlib import Path; from webui.jobs import Jobs\n"
        "jobs = Jobs(Path(sys.argv[1]))\n"
        "job = jobs.claim()\n"
        "if job is not None and job.number == 1: os.kill(os.getpid(), 9)\n"
        "if job is not None: jobs.finish(job, files=())\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(worker, "_command", lambda _: [sys.executable, "-c", code, str(settings.jobs)])
    supervisor = Supervisor(jobs, settings)
    supervisor.start()
    try:
        last = [job for job in jobs.follow(second)][-1]
        died = jobs.get(first.number, "ann")
    finally:
        supervisor.stop()
    assert last.state == "done"
    assert died.state == "failed" and "SIGKILL" in died.error and "memory" in died.error


def test_a_new_server_fails_what_ran_but_continues_trainings(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(settings.jobs)
    training, drawing = jobs.submit("ann", "train", "{}"), jobs.submit("ann", "generate", "{}")
    assert jobs.claim() and jobs.claim()
    monkeypatch.setattr(worker, "_command", lambda _: [sys.executable, "-c", "import time; time.sleep(60)"])
    supervisor = Supervisor(jobs, settings)
    supervisor.start()
    started = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - started < 10
    assert jobs.get(training.number, "ann").state == "waiting"
    assert "Send it again" in jobs.get(drawing.number, "ann").error


def test_settings_are_handed_to_the_worker(tmp_path: Path) -> None:
    settings = Settings("base", "data", tmp_path / "out", (tmp_path / "a", tmp_path / "b"))
    words = worker._command(settings)
    assert words[2:] == [
        "webui.worker",
        f"--output={tmp_path / 'out'}",
        f"--loras={tmp_path / 'a'}",
        f"--loras={tmp_path / 'b'}",
    ]
    assert settings.library == (settings.adapters, tmp_path / "a", tmp_path / "b")
