"""Shards on Ray Data and in this process: done once, retried, or given up.

A shard is retried after a failure of the storage. A shard that ends its processes is given up.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle

from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.work import engine as engine_module
from audiodiff_platform.work import retries
from audiodiff_platform.work.attempts import MAX_UNEXPLAINED_DEATHS, Attempts
from audiodiff_platform.work.engine import Counts, Engine, InProcess, RayDataEngine, Record, ShardWork, engine
from audiodiff_platform.work.shard_work import Commit

pytestmark = pytest.mark.workers

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module


class Writer:
    """Worker that leaves a file for each attempt and each finished shard.

    The worker fails as `fault` says in the first `times` attempts at shard 1.
    """

    def __init__(self, folder: str, fault: str = "", times: int = 0) -> None:
        self.folder, self.fault, self.times = Path(folder), fault, times

    def shard(self, shard: int, attempts: Attempts) -> Record:
        tries = len(list(self.folder.glob(f"try-{shard}-*")))
        (self.folder / f"try-{shard}-{tries}").touch()
        if shard == 1 and tries < self.times:
            match self.fault:
                case "death":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "storage":
                    raise ConnectionResetError("the store is out of reach")
                case "mistake":
                    raise ValueError("shard 1 is no good")
        (self.folder / f"done-{shard}").touch()
        return {"files": 1}


class Pairs:
    """Worker that does two shards at once, the second before the first.

    Its process dies once, at the shards 2 and 3, after the driver has received the shards 0 and 1.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def shards(self, pending: Iterable[Attempts], commit: Commit) -> Iterator[tuple[Attempts, Record | Exception]]:
        remaining = iter(pending)
        while pair := list(islice(remaining, 2)):
            numbers = [attempts.shard for attempts in pair]
            with (self.folder / "tries").open("a") as tries:
                tries.write(f"{numbers} ")
            if numbers == [2, 3]:
                wait_for(lambda: all((self.folder / f"received-{shard}").exists() for shard in (0, 1)))
                os.kill(os.getpid(), signal.SIGKILL)
            for attempts in reversed(pair):
                commit(attempts, {"files": 1})
                yield attempts, {"files": 1}


class Meeting(Writer):
    """Worker that does a shard only once two workers exist."""

    def shard(self, shard: int, attempts: Attempts) -> Record:
        (self.folder / f"worker-{os.getpid()}").touch()
        wait_for(lambda: len(list(self.folder.glob("worker-*"))) == 2)
        return super().shard(shard, attempts)


class Fragile(Writer):
    """Worker that ends its process in the constructor, once."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        if not (self.folder / "constructed").exists():
            (self.folder / "constructed").touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Broken(Writer):
    def __init__(self, folder: str) -> None:
        raise RuntimeError("no such model")


class Items(Writer):
    """Worker with three items per shard, one of which ends the process."""

    def shard(self, shard: int, attempts: Attempts) -> Record:
        given_up = 0
        for item in ("a", "poison", "b"):
            if attempts.gives_up(item):
                given_up += 1
                continue
            attempts.start(item)
            if item == "poison" and shard == 1:
                with (self.folder / "deaths").open("a") as deaths:
                    deaths.write(".")
                os.kill(os.getpid(), signal.SIGKILL)
        return {"files": 3 - given_up, "given_up": given_up}


class Slow(Writer):
    """Worker that takes longer than Ray Data's limit for a job without progress."""

    def shard(self, shard: int, attempts: Attempts) -> Record:
        time.sleep(3)
        return super().shard(shard, attempts)


class Holder:
    """Actor that holds CPUs."""

    def here(self) -> bool:
        return True


ENGINES: list[Callable[[], Engine]] = [InProcess, lambda: RayDataEngine(2)]


def work(worker: type[Any], folder: Path, *arguments: Any) -> ShardWork:
    return ShardWork("audiodiff test", worker, (str(folder), *arguments), str(folder))


def wait_for(event: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not event():
        assert time.monotonic() < deadline, "the event did not come"
        time.sleep(0.01)


def shards_done(counts: list[Counts]) -> list[int]:
    return sorted(count["shard"] for count in counts)


def test_several_workers_do_all_shards(local_ray: None, tmp_path: Path) -> None:
    counts = list(RayDataEngine(2).run(work(Meeting, tmp_path), range(20)))
    assert shards_done(counts) == list(range(20))
    assert len(list(tmp_path.glob("worker-*"))) == 2
    assert len(list(tmp_path.glob("try-*"))) == 20
    assert list(RayDataEngine(2).run(work(Writer, tmp_path), [])) == []


@pytest.mark.soak_short
def test_more_workers_than_cpus_use_those_that_are_there(local_ray: None, tmp_path: Path) -> None:
    assert shards_done(list(RayDataEngine(64).run(work(Writer, tmp_path), range(12)))) == list(range(12))


@pytest.mark.soak_short
def test_rows_hold_several_shards_where_there_are_very_many(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MAX_ROWS", 3)
    assert shards_done(list(RayDataEngine(2).run(work(Writer, tmp_path, "death", 1), range(10)))) == list(range(10))


@pytest.mark.parametrize("make", ENGINES, ids=["in process", "Ray Data"])
def test_a_committed_shard_is_not_done_again(local_ray: None, tmp_path: Path, make: Callable[[], Engine]) -> None:
    list(make().run(work(Writer, tmp_path), [0, 1]))
    counts = list(make().run(work(Writer, tmp_path), [0, 1, 2]))
    assert [count["files"] for count in counts] == [1, 1, 1]
    assert len(list(tmp_path.glob("try-*"))) == 3


@pytest.mark.soak_short
@pytest.mark.parametrize("make", ENGINES, ids=["in process", "Ray Data"])
def test_storage_that_fails_costs_a_retry_of_its_shard(
    local_ray: None, tmp_path: Path, make: Callable[[], Engine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert shards_done(list(make().run(work(Writer, tmp_path, "storage", 2), range(4)))) == list(range(4))
    assert sorted(file.name for file in tmp_path.glob("try-*")) == [
        "try-0-0",
        "try-1-0",
        "try-1-1",
        "try-1-2",
        "try-2-0",
        "try-3-0",
    ]
    assert "storage failed at 1 of 4 shards, such as 1 (the store is out of reach): retrying" in capsys.readouterr().err


@pytest.mark.soak_short
@pytest.mark.parametrize("make", ENGINES, ids=["in process", "Ray Data"])
def test_storage_that_keeps_failing_ends_the_job_after_all_other_shards(
    local_ray: None, tmp_path: Path, make: Callable[[], Engine]
) -> None:
    counts: list[Counts] = []
    with pytest.raises(
        JobError, match=r"^storage failed at 1 of 1 shards, such as 1 .*: run the same command again to continue$"
    ):
        counts.extend(make().run(work(Writer, tmp_path, "storage", 99), range(4)))
    assert len(list(tmp_path.glob("try-1-*"))) == retries.MAX_ATTEMPTS
    assert len(list(tmp_path.glob("done-*"))) == 3


@pytest.mark.parametrize("make", ENGINES, ids=["in process", "Ray Data"])
def test_a_mistake_in_a_shard_ends_the_job_in_one_line(
    local_ray: None, tmp_path: Path, make: Callable[[], Engine]
) -> None:
    with pytest.raises(JobError, match=r"^a worker failed: ValueError: shard 1 is no good$"):
        list(make().run(work(Writer, tmp_path, "mistake", 1), [0, 1, 2]))
    assert not list(tmp_path.glob("_attempts/*")), "an error is no death"


@pytest.mark.parametrize("make", ENGINES, ids=["in process", "Ray Data"])
def test_a_worker_that_cannot_be_made_ends_the_job(local_ray: None, tmp_path: Path, make: Callable[[], Engine]) -> None:
    with pytest.raises(JobError, match=r"^a worker failed: RuntimeError: no such model$"):
        list(make().run(work(Broken, tmp_path), [0, 1]))


def test_the_shard_of_a_process_that_dies_is_done_again(local_ray: None, tmp_path: Path) -> None:
    assert shards_done(list(RayDataEngine(2).run(work(Writer, tmp_path, "death", 3), range(5)))) == list(range(5))
    assert len(list(tmp_path.glob("try-1-*"))) == 4
    assert len(list(tmp_path.glob("try-*"))) == 8


def test_shards_in_progress_at_a_death_are_done_again_one_by_one(local_ray: None, tmp_path: Path) -> None:
    received = []
    for counts in RayDataEngine(1).run(work(Pairs, tmp_path), range(6)):
        received.append(counts["shard"])
        (tmp_path / f"received-{counts['shard']}").touch()
    assert received == list(range(6))
    assert (tmp_path / "tries").read_text() == "[0, 1] [2, 3] [4, 5] [2] [3] "


@pytest.mark.soak_short
def test_a_process_that_dies_in_its_constructor_is_started_again(local_ray: None, tmp_path: Path) -> None:
    assert shards_done(list(RayDataEngine(1).run(work(Fragile, tmp_path), range(3)))) == list(range(3))


@pytest.mark.soak_short
def test_a_shard_that_always_ends_its_process_is_given_up_after_the_others(local_ray: None, tmp_path: Path) -> None:
    counts: list[Counts] = []
    with pytest.raises(JobError, match=f"^shard 1 killed {MAX_UNEXPLAINED_DEATHS} worker processes: "):
        counts.extend(RayDataEngine(1).run(work(Writer, tmp_path, "death", 10**9), range(3)))
    assert shards_done(counts) == [0, 2]
    assert len(list(tmp_path.glob("try-1-*"))) == MAX_UNEXPLAINED_DEATHS


@pytest.mark.soak_short
@pytest.mark.parametrize("commits", [True, False], ids=["with a folder", "without"])
def test_an_item_that_ends_its_process_twice_is_given_up(local_ray: None, tmp_path: Path, commits: bool) -> None:
    items = ShardWork("audiodiff test", Items, (str(tmp_path),), str(tmp_path) if commits else None)
    counts = {count["shard"]: count for count in RayDataEngine(2).run(items, range(3))}
    assert not Path(ShardWork("", Items, (), None, run=items.run).attempts_folder().root).exists()
    assert (tmp_path / "deaths").read_text() == ".."
    assert {shard: count["given_up"] for shard, count in counts.items()} == {0: 0, 1: 1, 2: 0}


@pytest.mark.soak_short
def test_a_shard_may_take_longer_than_ray_data_waits_for_progress(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.data import DataContext

    monkeypatch.setattr(DataContext.get_current(), "execution_no_progress_timeout_s", 1)
    assert shards_done(list(RayDataEngine(1).run(work(Slow, tmp_path), range(2)))) == [0, 1]


@pytest.mark.soak_short
def test_a_job_that_stops_early_leaves_no_actors(local_ray: None, tmp_path: Path) -> None:
    before = ray.available_resources()["CPU"]
    with contextlib.closing(RayDataEngine(2).run(work(Writer, tmp_path), range(50))) as outcomes:
        next(outcomes)
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < before:
        assert time.monotonic() < deadline, "an actor is left"
        time.sleep(0.05)
    assert len(list(tmp_path.glob("done-*"))) < 50


def test_a_single_shard_of_a_local_run_needs_no_ray(tmp_path: Path) -> None:
    import subprocess

    script = (
        "import ray, sys\nfrom audiodiff_platform.work.engine import InProcess, RayDataEngine, engine\n"
        "with engine(1, None) as running:\n    assert isinstance(running, InProcess)\n"
        "    assert not ray.is_initialized()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_the_number_of_workers_is_printed(local_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    with engine(3, None) as running:
        assert isinstance(running, RayDataEngine)
        assert running.workers == 4
    assert "4 workers, one CPU each (4 of 4 CPUs are free)" in capsys.readouterr().err

    holder = ray.remote(num_cpus=3)(Holder).remote()
    assert ray.get(holder.here.remote())
    with engine(3, None) as running:
        assert isinstance(running, RayDataEngine)
        assert running.workers == 1
    ray.kill(holder)
    with (
        pytest.raises(ValueError, match="num_workers 64 needs 64 CPUs, the cluster has 4: use at most 4"),
        engine(3, 64),
    ):
        pass
