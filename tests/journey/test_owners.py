"""Two jobs on one output folder: one job does the work, the other exits.

The other job exits with status 2, or with status 0 if it finds the folder finished.
"""

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from audiodiff_platform.entry.errors import JobError, LeaseLostError
from audiodiff_platform.entry.run_verb import DONE, FAILED, MISTAKE
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.index import INDEX
from audiodiff_platform.storage.lease import LEASE, LOCK, owned
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import InProcess, Record, ShardWork
from audiodiff_platform.work.plan import ShardSize
from audiodiff_platform.work.sharded_job import FixedPlan, ShardedJob
from tests.servers.stores import Stores

ROOT = Path(__file__).parents[2]
SHARDS = 3
PAIRS = 50  # per kind, 200 in total
KINDS = [("disk", True), ("disk", False), ("s3", True), ("s3", False)]


class PartWorker:
    """Worker whose part of a shard holds the setting and the shard number."""

    def __init__(self, output: str, setting: int) -> None:
        self.output, self.setting = Folder(output), setting

    def shard(self, shard: int, attempts: Attempts) -> Record:
        attempts.require_ownership()
        name, content = f"parts/{shard:06d}", f"{self.setting} {shard}".encode() * 1_000
        self.output.write(name, content)
        return {"rows": 1, "parts": {name: commits.sha256(content)}, "sizes": {name: len(content)}}


def _job(uri: str, setting: int) -> int:
    """Claim a folder, plan, commit and finish; return the exit status that a command would have."""
    output, settings = Folder(uri), {"setting": setting}
    try:
        commits.require_same(output, "settings.json", settings)
        with owned(output, term_s=6) as lease:
            work = ShardWork(
                "audiodiff test", PartWorker, (uri, setting), uri, lambda record: {"files": record["rows"]}
            )
            plan = FixedPlan({shard: ShardSize(1) for shard in range(SHARDS)})
            job = ShardedJob(work, lease, ("settings.json", settings), plan, ("parts",), "parts")
            if job.pending:
                job.run(InProcess())
            job.records()
            job.succeed({"setting": setting})
    except ValueError:
        return MISTAKE
    except (JobError, LeaseLostError, OSError):
        return FAILED
    return DONE


def _contender(barrier: Barrier, uri: str, setting: int) -> None:
    barrier.wait()
    sys.exit(_job(uri, setting))


def _contents(folder: Folder) -> dict[str, bytes]:
    kept = ("settings.json", INDEX, commits.SUCCESS)
    return {name: folder.read(name) for name in (*kept, *folder.names("parts/*"))}


@pytest.mark.soak
@pytest.mark.parametrize(("place", "same"), KINDS)
def test_of_two_jobs_that_begin_together_one_does_the_work(
    place: str, same: bool, stores: Stores, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    bucket = stores.s3.make_bucket()
    single = [Folder(str(tmp_path / f"single {setting}")) for setting in (0, 1)]
    for setting, folder in enumerate(single):
        assert _job(folder.uri, setting) == DONE
    finished = 0
    for number in range(PAIRS):
        uri = f"{bucket}/{number}" if place == "s3" else str(tmp_path / str(number))
        barrier = context.Barrier(2)
        pair = [context.Process(target=_contender, args=(barrier, uri, setting)) for setting in (0, 0 if same else 1)]
        for process in pair:
            process.start()
        for process in pair:
            process.join(120)
        statuses = [process.exitcode for process in pair]
        assert sorted(map(str, statuses)) in (["0", "2"], ["0", "0"] if same else ["0", "2"]), (
            f"pair {number}: {statuses}"
        )
        finished += statuses == [0, 0]
        folder = Folder(uri)
        assert _contents(folder) == _contents(single[0 if same else statuses.index(0)])
        assert not folder.exists(LEASE)
        assert not folder.exists(LOCK)
        assert _job(uri, 0 if same else statuses.index(0)) == DONE, "the folder is as a single run leaves it"
    print(f"{PAIRS} pairs, {finished} of them found the folder finished")


def _command(music: Path, uri: str) -> list[str]:
    flags = {
        "input_dir": music,
        "output_dir": uri,
        "resolution": "32",
        "hop_length": 1024,
        "overlap": 0.5,
        "shard_minutes": 0.001,
        "num_workers": 1,
    }
    return [
        sys.executable,
        "jobs/prepare.py",
        *(str(part) for name, value in flags.items() for part in (f"--{name}", value)),
    ]


@pytest.mark.soak
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_of_two_whole_jobs_one_does_the_work(place: str, few_loops: Path, stores: Stores, tmp_path: Path) -> None:
    def run(uri: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            _command(few_loops, uri), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def parts(folder: Folder) -> dict[str, bytes]:
        return folder.read_all("data/*") | {commits.SUCCESS: folder.read(commits.SUCCESS)}

    whole = Folder(str(tmp_path / "whole"))
    run(whole.uri).communicate(timeout=300)
    bucket: Callable[[], Any] = stores.s3.make_bucket
    for number in range(3):
        uri = f"{bucket()}/out" if place == "s3" else str(tmp_path / str(number))
        pair = [run(uri), run(uri)]
        ended = [process.communicate(timeout=300) for process in pair]
        statuses = [process.returncode for process in pair]
        assert sorted(statuses) in ([0, 2], [0, 0]), ended
        if 2 in statuses:
            assert "is owned by a live job (process" in ended[statuses.index(2)][1]
        assert parts(Folder(uri)) == parts(whole)
