"""The queue: what is put in comes out once, in order, for its owner alone, whatever dies meanwhile."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from webui.jobs import MAX_WAITING, Job, JobError, Jobs


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "jobs")


def claimed(jobs: Jobs) -> Job:
    job = jobs.claim()
    assert job is not None
    return job


def test_jobs_come_out_in_their_order_and_once(jobs: Jobs) -> None:
    put_in = [jobs.submit("ann", "generate", f'{{"n": {n}}}').number for n in range(20)]
    with ThreadPoolExecutor(8) as pool:
        taken = [job.number for job in pool.map(lambda _: jobs.claim(), range(24)) if job is not None]
    assert sorted(taken) == put_in and jobs.claim() is None
    alone = Jobs(jobs.folder / "alone")
    numbers = [alone.submit("ann", "generate", "{}").number for _ in range(5)]
    assert [claimed(alone).number for _ in numbers] == numbers


def test_a_request_is_kept_to_the_letter(jobs: Jobs) -> None:
    text = '{"prompt": "<script>alert(1)</script> \u00e4 \\n \'; drop table jobs; --"}'
    job = jobs.submit("o'hara", "generate", text)
    assert jobs.get(job.number, "o'hara").request == text == claimed(jobs).request


def test_nobody_sees_or_ends_the_jobs_of_another(jobs: Jobs) -> None:
    mine, other = jobs.submit("ann", "generate", "{}"), jobs.submit("bob", "generate", "{}")
    assert [job.number for job in jobs.of("ann")] == [mine.number]
    for act in (jobs.get, jobs.cancel):
        with pytest.raises(JobError, match=f"no job {other.number} of yours"):
            act(other.number, "ann")
    assert jobs.get(other.number, "bob").state == "waiting"


def test_the_position_counts_what_comes_before(jobs: Jobs) -> None:
    first, second, third = (jobs.submit(owner, "generate", "{}") for owner in ("ann", "bob", "ann"))
    assert [jobs.ahead(job) for job in (first, second, third)] == [0, 1, 2]
    jobs.finish(claimed(jobs), files=())
    assert [jobs.ahead(jobs.get(job.number, job.owner)) for job in (second, third)] == [0, 1]


def test_what_is_asked_for_while_one_runs_stands_in_line(jobs: Jobs) -> None:
    first, _, third = (jobs.submit(owner, "generate", "{}") for owner in ("ann", "bob", "ann"))
    jobs.submit("ann", "train", "{}")
    running = claimed(jobs)
    assert [jobs.before(job).number for job in (first, third)] == [first.number, first.number]
    assert [jobs.behind(job) for job in (first, third)] == [1, 0]
    jobs.finish(running, files=())
    assert jobs.before(third) == third


def test_nothing_is_said_of_a_job_that_does_not_run_any_more(jobs: Jobs) -> None:
    jobs.submit("ann", "train", "{}")
    job = claimed(jobs)
    jobs.put_back(job)  # by a server that was started meanwhile
    assert jobs.report(job, done=3, total=9), "whoever still does it is asked to end"
    jobs.finish(job, files=("late.png",))
    jobs.fail(job, "late")
    assert (jobs.get(job.number, "ann").state, jobs.get(job.number, "ann").files) == ("waiting", ())


def test_what_a_failed_job_has_made_stays(jobs: Jobs) -> None:
    jobs.submit("ann", "train", "{}")
    job = claimed(jobs)
    jobs.report(job, done=3, total=9, files=["step-000003-000.png"])
    jobs.fail(job, "the disk is full")
    assert jobs.get(job.number, "ann").files == ("step-000003-000.png",)


def test_cancelling_ends_what_waits_and_asks_what_runs(jobs: Jobs) -> None:
    running, waiting = (jobs.submit("ann", "generate", "{}") for _ in range(2))
    job = claimed(jobs)
    assert not jobs.report(job, done=1, total=9)
    assert jobs.cancel(waiting.number, "ann").state == "cancelled"
    assert jobs.cancel(running.number, "ann").state == "running"
    assert jobs.report(job, done=2, total=9)
    jobs.end_cancelled(job, note="kept nothing")
    assert jobs.cancel(running.number, "ann").state == "cancelled"
    assert jobs.claim() is None


def test_a_job_that_is_followed_is_seen_to_its_end(jobs: Jobs) -> None:
    job = jobs.submit("ann", "generate", "{}")
    seen: list[Job] = []
    thread = threading.Thread(target=lambda: seen.extend(jobs.follow(job)))
    thread.start()
    running = claimed(jobs)
    jobs.report(running, done=3, total=9, note="drawing", files=["preview.png"])
    jobs.finish(running, files=["00.png"], result='{"a": 1}')
    thread.join(5)
    assert not thread.is_alive() and seen[0].state == "waiting"
    last = seen[-1]
    assert (last.state, last.files, last.result) == ("done", ("00.png",), '{"a": 1}')
    assert last.is_over and last.seconds >= 0 and list(jobs.follow(last)) == [last]


def test_the_seconds_of_a_job_that_says_nothing_go_on(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webui.jobs.SECOND", 0.05)
    jobs.submit("ann", "generate", "{}")
    seen = [one.seconds for one in islice(jobs.follow(claimed(jobs)), 4)]
    assert seen == sorted(set(seen)) and seen[-1] - seen[0] >= 0.1


def test_what_a_process_before_has_queued_is_still_there(jobs: Jobs) -> None:
    done, failed, waiting = (jobs.submit("ann", "train", "{}") for _ in range(3))
    jobs.finish(claimed(jobs), files=("a.png",))
    jobs.fail(claimed(jobs), "no such folder")
    again = Jobs(jobs.folder)
    states = {job.number: (job.state, job.error) for job in again.of("ann")}
    assert states == {
        done.number: ("done", ""),
        failed.number: ("failed", "no such folder"),
        waiting.number: ("waiting", ""),
    }
    assert claimed(again).number == waiting.number


def test_a_queue_has_one_server_at_a_time(jobs: Jobs) -> None:
    lock = jobs.hold()
    with pytest.raises(JobError, match="another page works in"):
        Jobs(jobs.folder).hold()
    assert jobs.submit("ann", "draw", "{}").state == "waiting", "what is held is the place of the server"
    lock.close()
    Jobs(jobs.folder).hold().close()


def test_one_owner_cannot_fill_the_queue(jobs: Jobs) -> None:
    for _ in range(MAX_WAITING):
        jobs.submit("ann", "generate", "{}")
    with pytest.raises(JobError, match=f"{MAX_WAITING} of your jobs"):
        jobs.submit("ann", "generate", "{}")
    assert jobs.submit("bob", "generate", "{}").state == "waiting"
