"""The process that does the jobs, one at a time: it alone holds models, so that its end costs one job.

python -m webui.worker FOLDER ...     is started, watched and started again by the page's `Supervisor`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from difflora import DiffloraError, usage
from difflora.errors import is_memory
from webui.jobs import Job, Jobs
from webui.settings import Settings
from webui.work import WORK, Desk, Work
from webui.work.desk import Bases, Cancelled, Ended, Mixed

IDLE = 0.015  # seconds between two looks into an empty queue
TELL = 3.0  # seconds between two words about the device
PATIENCE = 15.0  # seconds that a worker has to end when it is asked to
OUT_OF_MEMORY = (
    "out of memory. Try fewer images at once, a smaller picture, or for training a smaller batch, "
    "gradient checkpointing or a lower rank. The base stays loaded."
)


def work_through(jobs: Jobs, settings: Settings, *, works: Mapping[str, Work]) -> None:
    """Does jobs as they come, until Ended is raised."""
    bases = Bases()
    parent = os.getppid()

    def is_wanted() -> bool:
        return os.getppid() == parent  # without its page a worker has nothing to do

    threading.Thread(target=_tell, args=(settings, bases), name="state", daemon=True).start()
    while is_wanted():
        job = jobs.claim()
        if job is None:
            time.sleep(IDLE)
        else:
            do(job, Desk(job, jobs, settings, bases, is_wanted=is_wanted), works=works)


def _tell(settings: Settings, bases: Bases) -> None:
    """Says every few seconds what the device is, how full its memory is, and which base is loaded."""
    partial = settings.state.with_suffix(".partial")
    while True:
        found = usage()
        state = {"device": found.device, "used": found.used, "total": found.total, "loaded": bases.name}
        partial.write_text(json.dumps(state), encoding="utf-8")
        os.replace(partial, settings.state)
        time.sleep(TELL)


def do(job: Job, desk: Desk, *, works: Mapping[str, Work]) -> None:
    """Does one job, and says how it ended. Whatever goes wrong is told in the job."""
    jobs = desk.jobs
    try:
        work = works[job.kind]
        wanted = work.wanted.model_validate_json(job.request)
        if isinstance(wanted, Mixed):
            wanted.require_unchanged(desk.library())
        done = work.run(wanted, desk)
        jobs.finish(job, files=done.files, result=done.result)
    except Cancelled as cancelled:
        jobs.end_cancelled(job, note=cancelled.note, files=desk.files)
    except Ended:
        if desk.is_wanted():  # else the next page has it already
            jobs.put_back(job)  # a training goes on from what it has saved, a drawing begins again
        raise
    except DiffloraError as error:
        jobs.fail(job, str(error))
    except Exception as error:  # the next job must not suffer from any fault of this one
        traceback.print_exc()
        jobs.fail(
            job, OUT_OF_MEMORY if is_memory(error) else f"{type(error).__name__}: {error} (see the log)"
        )
    finally:
        _tidy()


def _tidy() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


class Supervisor:
    """Keeps a worker process running, and tells of each one that ends by itself."""

    def __init__(self, jobs: Jobs, settings: Settings) -> None:
        self.jobs, self.settings = jobs, settings
        self._ending = threading.Event()
        self._starting = threading.Lock()  # no worker is started once they are being ended
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        """Takes up what a server before this one has left, and starts the worker."""
        self._settle("the server ended while it ran. Send it again.", keep_training=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the worker; a training that runs saves its state, and goes on with the next server."""
        with self._starting:
            self._ending.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)

    def _watch(self) -> None:
        while not self._ending.is_set():
            with (self.settings.output / "worker.log").open("ab") as log, self._starting:
                if self._ending.is_set():
                    return
                self._process = subprocess.Popen(_command(self.settings), stdout=log, stderr=log)
            code = self._process.wait()
            if not self._ending.is_set():
                self._settle(f"the worker process ended by itself ({_cause(code)}). {_ADVICE}")
                time.sleep(0.5)  # one that cannot start at all is not started without a pause

    def _settle(self, error: str, *, keep_training: bool = False) -> None:
        """No job runs without a worker: what is said to run has failed, or waits again."""
        while (job := self.jobs.running()) is not None:
            if keep_training and job.kind == "train":
                self.jobs.put_back(job)
            else:
                self.jobs.fail(job, error)


_ADVICE = (
    "Most often memory has run out: try fewer images at once or a smaller picture. A training goes on from "
    "its newest checkpoint when it is started again with the same name."
)


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _command(settings: Settings) -> list[str]:
    folders = [f"--loras={folder}" for folder in settings.loras]
    return [sys.executable, "-m", "webui.worker", f"--output={settings.output}", *folders]


def main() -> None:
    """`python -m webui.worker`; ends with SIGTERM, or with the process that started it."""
    parser = argparse.ArgumentParser(description="Does the jobs of a difflora page.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--loras", type=Path, action="append", default=[])
    given = parser.parse_args()

    def end(number: int, frame: object) -> None:
        raise Ended

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the page ends its worker
    settings = Settings("", "", given.output, tuple(given.loras))
    try:
        work_through(Jobs(settings.jobs), settings, works=WORK)
    except Ended:
        return


if __name__ == "__main__":
    main()
