"""Shards in two stages on Ray Data: handed over, finished and committed once, whichever process dies."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work import engine as engine_module
from audiodiff_platform.work.attempts import MAX_UNEXPLAINED_DEATHS, Attempts
from audiodiff_platform.work.engine import RayDataEngine, engine
from audiodiff_platform.work.outcomes import Handover, Outcome
from audiodiff_platform.work.shard_work import Commit, Record, ShardWork
from audiodiff_platform.work.worker_runner import FinishRunner

pytestmark = pytest.mark.workers

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module

TWO_STAGES = RayDataEngine(1, 0, 1)


class Sampling:
    """Worker that hands each shard over with a few bytes of its own."""

    def __init__(self, folder: str, fault: str = "", times: int = 0) -> None:
        self.folder, self.fault, self.times = Path(folder), fault, times

    def shards(self, pending: Iterable[Attempts], commit: Commit) -> Iterator[tuple[Attempts, Record | Exception]]:
        raise AssertionError("there are two stages")

    def handovers(self, pending: Iterable[Attempts]) -> Iterator[tuple[Attempts, Handover | Exception]]:
        for attempts in pending:
            shard = attempts.shard
            tries = _note(self.folder, f"sampled-{shard}")
            if self.fault == "death of a worker" and shard == 3 and not tries:
                wait_for((self.folder / "finishing-0").exists)
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "source" and shard == 1:
                yield attempts, ValueError("shard 1 is no good")
            else:
                content = np.full(1_000 * shard, shard, np.uint8)  # none for shard 0
                yield attempts, Handover({"shard": shard}, content)


class Finishing:
    """Finisher that writes what it was handed, and fails at shard 1 in the first `times` attempts."""

    def __init__(self, folder: str, fault: str = "", times: int = 0) -> None:
        self.folder, self.fault, self.times = Path(folder), fault, times

    def finish(self, handover: Handover, attempts: Attempts) -> Record:
        shard = attempts.shard
        assert handover.facts == {"shard": shard}
        tries = _note(self.folder, f"finishing-{shard}")
        if self.fault == "death of a worker" and shard == 0:  # while the first stage runs the shard again
            wait_for(lambda: (self.folder / "sampled-3").exists() and len(_notes(self.folder, "sampled-0")) == 2)
        if shard == 1 and tries < self.times:
            match self.fault:
                case "death":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "storage":
                    raise ConnectionResetError("the store is out of reach")
                case "mistake":
                    raise ValueError("shard 1 is no good")
        (self.folder / f"written-{shard}").write_bytes(handover.content.tobytes())
        return {"files": 1}


def _note(folder: Path, name: str) -> int:
    """Add this process to the file of an event, and return how often the event had happened before."""
    before = len(_notes(folder, name))
    with (folder / name).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return before


def _notes(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text().split() if (folder / name).exists() else []


def wait_for(event: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not event():
        assert time.monotonic() < deadline, "the event did not come"
        time.sleep(0.01)


def work(folder: Path, *fault: Any) -> ShardWork:
    return ShardWork("audiodiff test", Sampling, (str(folder), *fault), str(folder), finisher=Finishing)


def run(folder: Path, shards: int, *fault: Any) -> list[int]:
    """Run shards in two stages, check what is written, and return the numbers in the order of their ends."""
    done = [counts["shard"] for counts in TWO_STAGES.run(work(folder, *fault), range(shards))]
    assert commits.committed(Folder(str(folder))) == {shard: {"files": 1} for shard in range(shards)}
    for shard in range(shards):
        assert (folder / f"written-{shard}").read_bytes() == bytes([shard]) * 1_000 * shard
    return done


def test_each_shard_passes_both_stages_once(local_ray: None, tmp_path: Path) -> None:
    assert sorted(run(tmp_path, 6)) == list(range(6))
    events = {stage: [_notes(tmp_path, f"{stage}-{shard}") for shard in range(6)] for stage in ("sampled", "finishing")}
    assert {len(notes) for of_stage in events.values() for notes in of_stage} == {1}
    processes = [{notes[0] for notes in of_stage} for of_stage in events.values()]
    assert [len(of_stage) for of_stage in processes] == [1, 1]
    assert processes[0] != processes[1]
    assert not list(tmp_path.glob("_attempts/*"))
    (tmp_path / "_commits" / "000004.json").unlink()
    assert sorted(run(tmp_path, 6)) == list(range(6))
    again = [shard for shard in range(6) if len(_notes(tmp_path, f"sampled-{shard}")) == 2]
    assert again == [4]


def test_the_death_of_a_finisher_costs_the_finishing_of_its_shard(local_ray: None, tmp_path: Path) -> None:
    assert sorted(run(tmp_path, 4, "death", 2)) == list(range(4))
    assert [len(_notes(tmp_path, f"finishing-{shard}")) for shard in range(4)] == [1, 3, 1, 1]
    assert [len(_notes(tmp_path, f"sampled-{shard}")) for shard in range(4)] == [1, 1, 1, 1]


@pytest.mark.soak_short
def test_what_was_handed_over_before_a_death_is_finished_once(local_ray: None, tmp_path: Path) -> None:
    assert sorted(run(tmp_path, 6, "death of a worker")) == list(range(6))
    assert [len(_notes(tmp_path, f"finishing-{shard}")) for shard in range(6)] == [1] * 6
    assert len(_notes(tmp_path, "sampled-3")) == 2
    marks = sorted(file.name for file in tmp_path.glob("_attempts/*"))
    assert marks == ["000003.json"], "a shard that the other stage has in progress has no death"


@pytest.mark.soak_short
def test_storage_that_fails_in_the_second_stage_costs_both_stages_of_the_shard(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted(run(tmp_path, 4, "storage", 1)) == list(range(4))
    assert [len(_notes(tmp_path, f"sampled-{shard}")) for shard in range(4)] == [1, 2, 1, 1]
    assert "storage failed at 1 of 4 shards, such as 1 (the store is out of reach): retrying" in capsys.readouterr().err


@pytest.mark.soak_short
@pytest.mark.parametrize("fault", ["mistake", "source"])
def test_a_mistake_in_either_stage_ends_the_job_in_one_line(local_ray: None, tmp_path: Path, fault: str) -> None:
    with pytest.raises(JobError, match=r"^a worker failed: ValueError: shard 1 is no good$"):
        run(tmp_path, 3, fault, 1)
    assert not list(tmp_path.glob("_attempts/*")), "an error is no death"


@pytest.mark.soak_short
def test_a_shard_that_always_ends_its_finisher_is_given_up_after_the_others(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=f"^shard 1 killed {MAX_UNEXPLAINED_DEATHS} worker processes: "):
        run(tmp_path, 3, "death", 10**9)
    assert sorted(commits.committed(Folder(str(tmp_path)))) == [0, 2]
    assert len(_notes(tmp_path, "finishing-1")) == MAX_UNEXPLAINED_DEATHS
    assert len(_notes(tmp_path, "sampled-1")) == 1


def test_a_finisher_passes_on_what_is_committed_or_failed(tmp_path: Path) -> None:
    runner = FinishRunner(work(tmp_path))
    commits.commit(Folder(str(tmp_path)), 2, {"files": 7})
    handed = Outcome(2, {}, kind="handed over", handover=Handover({"shard": 2}, np.zeros(0, np.uint8)))
    assert Outcome.of(runner(handed.row_between_stages())) == Outcome(2, {"files": 7})
    failed = Outcome(3, {}, "the store is out of reach", "storage")
    assert Outcome.of(runner(failed.row_between_stages())) == failed
    assert not list(tmp_path.glob("finishing-*"))


@pytest.mark.parametrize(
    ("gpus", "workers", "cpus", "finishers"), [(0, 4, 4, 0), (1, 1, 2, 1), (1, 2, 16, 8), (1, 4, 8, 4), (1, 4, 4, 1)]
)
def test_gpus_have_a_second_stage_on_the_other_cpus(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, gpus: int, workers: int, cpus: int, finishers: int
) -> None:
    monkeypatch.setattr(engine_module, "workers_for", lambda *_: (workers, gpus))
    monkeypatch.setattr("audiodiff_platform.cluster.capacity.free", lambda kind: cpus)
    with engine(9, None) as running:
        assert running == RayDataEngine(workers, gpus, finishers)
