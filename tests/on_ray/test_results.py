"""Jobs in a folder: whole or absent, claimed and ended once, unseen by other keys, through crashes and full disks."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audiodiff_platform.serve.expiry import ORPHAN_S, Expiry
from audiodiff_platform.serve.results import MAX_ATTEMPTS, JobNotFoundError, Jobs
from audiodiff_platform.serve.running_job import RunningJob
from audiodiff_platform.serve.task_folder import DamagedResultError, ResultsFullError, TaskEndedError, TaskFolder
from audiodiff_platform.storage import Folder
from tests.clocks import Clock
from tests.rare import rare
from tests.servers.stores import Stores

LEASE_S = 60.0
MAX_BYTES = 1_000_000
REQUESTS = [{"seed": 1}, {"seed": 2, "steps": 10}]


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000)


@pytest.fixture(params=["disk", "s3", rare("gs")])
def folder(request: pytest.FixtureRequest, tmp_path: Path, stores: Stores) -> Folder:
    if request.param == "disk":
        return Folder(str(tmp_path / "results"))
    return Folder(f"{getattr(stores, request.param).make_bucket()}/results")


@pytest.fixture
def tasks(folder: Folder, clock: Clock) -> TaskFolder:
    return TaskFolder(folder, MAX_BYTES, LEASE_S, clock)


@pytest.fixture
def disk(tmp_path: Path, clock: Clock) -> TaskFolder:
    """Results on a disk, for what does not depend on the place."""
    return TaskFolder(Folder(str(tmp_path / "results")), MAX_BYTES, LEASE_S, clock)


def claimed(jobs: Jobs, owner: str, job_id: str) -> RunningJob:
    running = jobs.claim(owner, job_id)
    assert running is not None
    return running


def test_the_life_of_a_job(tasks: TaskFolder, clock: Clock) -> None:
    jobs = Jobs(tasks, ttl_s=100)
    job = jobs.create("alice", REQUESTS, inputs=[b"upload"])
    assert (job.status, job.requests, job.is_held) == ("queued", tuple(REQUESTS), False)
    running = claimed(jobs, "alice", job.id)
    assert jobs.claim("alice", job.id) is None
    running.heartbeat("queued", queue_position=2)
    assert jobs.get("alice", job.id).progress == {"queue_position": 2}
    running.heartbeat("in_progress", step=5, steps=10, queue_position=0)
    seen = jobs.get("alice", job.id)
    assert (seen.status, seen.is_held, seen.progress["step"]) == ("in_progress", True, 5)
    assert running.input(0) == b"upload"
    running.add(1, b"second", "audio/wav", {"seed": 2})
    with pytest.raises(JobNotFoundError, match="its status is in_progress"):
        jobs.content("alice", job.id, 1)
    running.add_error(0, "not_finite", "the result is not finite")
    clock.now += 10
    running.complete()
    done = jobs.get("alice", job.id)
    assert (done.status, done.completed_at, done.expires_at) == ("completed", clock.now, clock.now + 100)
    assert [item.index for item in done.items] == [0, 1]
    item, content = jobs.content("alice", job.id, 1)
    assert (content, item.media_type, item.details) == (b"second", "audio/wav", {"seed": 2})
    with pytest.raises(JobNotFoundError, match="no content 0"):
        jobs.content("alice", job.id, 0)
    with pytest.raises(TaskEndedError):
        running.heartbeat("in_progress")
    assert jobs.claim("alice", job.id) is None
    assert jobs.cancel("alice", job.id) == done, "a job ends once"
    jobs.delete("alice", job.id)
    with pytest.raises(JobNotFoundError):
        jobs.get("alice", job.id)
    assert list(tasks.folder.walk()) == []


def test_pages_are_newest_first_and_of_one_owner(tasks: TaskFolder, clock: Clock) -> None:
    jobs = Jobs(tasks)
    made = []
    for number in range(5):
        clock.now += 1
        made.append(jobs.create("alice", [{"seed": number}]).id)
        jobs.create("bob", [{"seed": number}])
    newest = made[::-1]
    page = jobs.page("alice", limit=2)
    assert ([job.id for job in page.jobs], page.has_more) == (newest[:2], True)
    jobs.delete("alice", newest[1])
    page = jobs.page("alice", limit=3, after=newest[1])
    assert ([job.id for job in page.jobs], page.has_more) == (newest[2:], False)
    assert jobs.page("carol").jobs == ()
    for call in (jobs.get, jobs.cancel, jobs.delete, jobs.content, jobs.claim):
        with pytest.raises(JobNotFoundError):
            call("bob", newest[0])
    with pytest.raises(ValueError, match="limit 0: must be 1 to 100"):
        jobs.page("alice", limit=0)


@pytest.mark.parametrize(
    "wrong", ["", "..", "../../etc/passwd", "job_", "job_" + "0" * 45, "job_" + "0" * 46 + "\n", "job_" + "A" * 46, "*"]
)
def test_only_ids_reach_the_folder(disk: TaskFolder, wrong: str) -> None:
    jobs = Jobs(disk)
    for call in (jobs.get, jobs.cancel, jobs.delete, jobs.content, jobs.claim):
        with pytest.raises(JobNotFoundError):
            call("alice", wrong)
    with pytest.raises(JobNotFoundError):
        jobs.page("alice", after=wrong)


def test_a_cancelled_or_deleted_job_stops_at_its_next_heartbeat(tasks: TaskFolder) -> None:
    jobs = Jobs(tasks)
    first, second = (jobs.create("alice", REQUESTS) for _ in range(2))
    running, other = claimed(jobs, "alice", first.id), claimed(jobs, "alice", second.id)
    running.add(0, b"unfinished", "audio/wav", {})
    assert jobs.cancel("alice", first.id).status == "cancelled"
    jobs.delete("alice", second.id)
    for stopped in (running, other):
        with pytest.raises(TaskEndedError):
            stopped.heartbeat("in_progress")
    with pytest.raises(TaskEndedError):
        running.complete()
    assert jobs.get("alice", first.id).status == "cancelled"
    assert jobs.get("alice", first.id).items == ()


def test_after_a_crash_a_job_is_started_anew(tasks: TaskFolder, clock: Clock) -> None:
    jobs = Jobs(tasks)
    job = jobs.create("alice", REQUESTS)
    assert list(jobs.unfinished()) == [("alice", job.id)], "a job that no process has claimed yet"
    lost = claimed(jobs, "alice", job.id)
    lost.add(0, b"content without a record", "audio/wav", {})
    restarted = Jobs(tasks)
    assert list(restarted.unfinished()) == []
    clock.now += LEASE_S
    assert list(restarted.unfinished()) == [("alice", job.id)]
    running = claimed(restarted, "alice", job.id)
    with pytest.raises(TaskEndedError):
        lost.heartbeat("in_progress")
    running.add(0, b"content", "audio/wav", {})
    running.complete()
    with pytest.raises(TaskEndedError):
        lost.complete()
    assert restarted.content("alice", job.id)[1] == b"content"
    assert list(restarted.unfinished()) == []


def test_a_job_that_ends_its_processes_is_failed(disk: TaskFolder, clock: Clock) -> None:
    jobs = Jobs(disk)
    job = jobs.create("alice", REQUESTS)
    for _ in range(MAX_ATTEMPTS):
        claimed(jobs, "alice", job.id).release()
    for _ in range(MAX_ATTEMPTS):
        claimed(jobs, "alice", job.id)
        clock.now += LEASE_S
    assert jobs.claim("alice", job.id) is None
    failed = jobs.get("alice", job.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "replica_lost")


def test_of_many_processes_one_claims_and_one_ends(tasks: TaskFolder) -> None:
    replicas = [Jobs(TaskFolder(tasks.folder, MAX_BYTES, LEASE_S, tasks.now)) for _ in range(4)]
    job = replicas[0].create("alice", REQUESTS)
    with ThreadPoolExecutor(4) as pool:
        claims = [claim for claim in pool.map(lambda jobs: jobs.claim("alice", job.id), replicas) if claim]
        (running,) = claims
        cancelled = [pool.submit(jobs.cancel, "alice", job.id) for jobs in replicas[1:]]
        try:
            running.complete()
            expected = "completed"
        except TaskEndedError:
            expected = "cancelled"
        assert {future.result().status for future in cancelled} == {expected}
    assert replicas[0].get("alice", job.id).status == expected


def test_damage_is_reported(disk: TaskFolder) -> None:
    jobs = Jobs(disk)
    ids = []
    for _ in range(4):
        job = jobs.create("alice", REQUESTS)
        running = claimed(jobs, "alice", job.id)
        running.add(0, b"content", "audio/wav", {})
        running.complete()
        ids.append(job.id)
    root = Path(disk.folder.root) / "jobs/alice"
    (root / ids[0] / "content-1-0000").write_bytes(b"conten")
    (root / ids[1] / "content-1-0000").unlink()
    (root / ids[2] / "end.json").write_bytes(b'{"status": "comp')
    (root / ids[3] / "request.json").write_bytes(b"")
    for job_id in ids[:2]:
        with pytest.raises(DamagedResultError, match=f"content 0 of job {job_id} is missing or damaged"):
            jobs.content("alice", job_id)
    damaged = jobs.get("alice", ids[2])
    assert damaged.error is not None
    assert (damaged.status, damaged.error.code, damaged.requests) == ("failed", "result_damaged", tuple(REQUESTS))
    assert jobs.content("alice", ids[3])[1] == b"content"
    assert len(jobs.page("alice").jobs) == 4


def test_jobs_wait_until_a_process_claims_them(tasks: TaskFolder) -> None:
    jobs = Jobs(tasks)
    ids = sorted(jobs.create(owner, REQUESTS).id for owner in ("alice", "bob", "alice"))
    assert jobs.waiting() == ids
    for owner in ("alice", "bob"):
        for job in jobs.page(owner).jobs:
            if job.id == ids[0]:
                claimed(jobs, owner, job.id)
    assert jobs.waiting() == ids[1:]


def test_expired_jobs_and_remains_are_removed(tasks: TaskFolder, clock: Clock) -> None:
    jobs, expiry = Jobs(tasks, ttl_s=100), Expiry(tasks, unfinished_s=1_000)
    done, held, never = (jobs.create("alice", REQUESTS) for _ in range(3))
    running = claimed(jobs, "alice", done.id)
    running.add(0, b"content", "audio/wav", {})
    running.complete()
    tasks.folder.write(f"jobs/alice/{'job_' + '0' * 46}/content-1-0000", b"remains")
    assert expiry.sweep() == 0
    assert tasks.used_bytes == sum(entry.size for entry in tasks.folder.walk())
    clock.now += 100
    assert expiry.sweep() == 1
    with pytest.raises(JobNotFoundError):
        jobs.get("alice", done.id)
    clock.now += 900
    claimed(jobs, "alice", held.id)
    assert expiry.sweep() == 1
    assert [job.id for job in jobs.page("alice").jobs] == [held.id]
    with pytest.raises(JobNotFoundError):
        jobs.get("alice", never.id)
    clock.now += ORPHAN_S
    assert expiry.sweep() == 2
    assert list(tasks.folder.walk()) == []
    assert (expiry.sweep(), tasks.used_bytes) == (0, 0)


def test_a_full_folder_accepts_no_job_until_others_end_or_are_deleted(disk: TaskFolder) -> None:
    jobs = Jobs(disk)
    job = jobs.create("alice", REQUESTS)
    running = claimed(jobs, "alice", job.id)
    running.add(0, bytes(MAX_BYTES - 1_000), "audio/wav", {})
    with pytest.raises(ResultsFullError, match="of 1,000,000 bytes"):
        running.add(1, bytes(1_000), "audio/wav", {})
    with pytest.raises(ResultsFullError):
        jobs.create("bob", REQUESTS, inputs=[bytes(1_000)])
    running.heartbeat("in_progress", step=1)
    running.fail("results_full", "no space")
    assert jobs.get("alice", job.id).status == "failed"
    large = jobs.create("bob", REQUESTS, inputs=[bytes(MAX_BYTES - 2_000)])
    with pytest.raises(ResultsFullError):
        jobs.create("bob", REQUESTS, inputs=[bytes(2_000)])
    jobs.delete("bob", large.id)
    jobs.delete("alice", job.id)
    assert disk.used_bytes == 0
    jobs.create("bob", REQUESTS, inputs=[bytes(2_000)])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_jobs_that_are_created_at_once_keep_their_order(tmp_path: Path) -> None:
    jobs = Jobs(TaskFolder(Folder(str(tmp_path)), MAX_BYTES))
    created = [jobs.create("alice", REQUESTS).id for _ in range(20)]
    assert [job.id for job in jobs.page("alice", limit=20).jobs] == created[::-1]
    assert [job_id for _, job_id in jobs.unfinished()] == created


def test_a_job_states_when_it_was_created_and_when_it_expires(disk: TaskFolder, clock: Clock) -> None:
    jobs = Jobs(disk, ttl_s=100)
    job = jobs.create("alice", REQUESTS)
    assert (job.created_at, job.expires_at) == (clock.now, clock.now + 100)


@pytest.mark.root
def test_a_full_disk_is_reported_and_corrupts_nothing(small_disk: Path) -> None:
    jobs = Jobs(TaskFolder(Folder(str(small_disk / "results")), MAX_BYTES))
    kept, job = jobs.create("alice", REQUESTS), jobs.create("alice", REQUESTS)
    running = claimed(jobs, "alice", kept.id)
    running.add(0, b"content", "audio/wav", {})
    running.complete()
    running = claimed(jobs, "alice", job.id)
    with pytest.raises(ResultsFullError, match="no space is left on the disk"):
        running.add(0, bytes(300_000), "audio/wav", {})
    (small_disk / "filler").write_bytes(bytes(_free(small_disk)))
    with pytest.raises(ResultsFullError):
        jobs.create("alice", REQUESTS)
    (small_disk / "filler").unlink()
    running.fail("results_full", "no space")
    assert [entry.status for entry in jobs.page("alice").jobs if entry.id in (kept.id, job.id)] == [
        "failed",
        "completed",
    ]
    assert jobs.content("alice", kept.id)[1] == b"content"
    assert not [path for path in small_disk.rglob("*") if path.name.startswith(".")], "no part of a file is left"


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


DIES = """
import os, sys
from audiodiff_platform.serve.results import Jobs
from audiodiff_platform.serve.task_folder import TaskFolder
from audiodiff_platform.storage import Folder

jobs = Jobs(TaskFolder(Folder(sys.argv[1]), 10**6, lease_s=0.0))
job = jobs.create("alice", [{"seed": 1}])
running = jobs.claim("alice", job.id)
if sys.argv[2] == "content":
    running.add(0, b"content", "audio/wav", {})
os._exit(9)
"""


@pytest.mark.parametrize("after", ["claim", rare("content")])
def test_what_a_dead_process_left_is_run_again(tmp_path: Path, after: str) -> None:
    root = tmp_path / "results"
    assert subprocess.run([sys.executable, "-c", DIES, str(root), after], check=False).returncode == 9
    jobs = Jobs(TaskFolder(Folder(str(root)), MAX_BYTES))
    ((owner, job_id),) = jobs.unfinished()
    running = claimed(jobs, owner, job_id)
    running.add(0, b"again", "audio/wav", {})
    running.complete()
    assert jobs.content(owner, job_id)[1] == b"again"
    assert json.loads((root / "jobs/alice" / job_id / "end.json").read_text())["status"] == "completed"
