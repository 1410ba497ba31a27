"""Shards on actors: each is done once it can be, whoever dies meanwhile, and what cannot go on says so."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from ray import cloudpickle
from ray.exceptions import RayActorError

from audiodiff_platform.job import JobError
from audiodiff_platform.shards import LOSSES_IN_A_ROW_AT_MOST, run_shards

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it


class Writer:
    """Leaves a file a shard; ends itself, as by a fault of the machine, at shards that say so and have not been tried `deaths` times."""

    def __init__(self, folder: str, deadly: tuple[int, ...], deaths: int) -> None:
        self.folder, self.deadly, self.deaths = Path(folder), deadly, deaths

    def shard(self, shard: int) -> dict[str, int]:
        tries = len(list(self.folder.glob(f"try-{shard}-*")))
        (self.folder / f"try-{shard}-{tries}").touch()
        if shard in self.deadly and tries < self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / f"done-{shard}").touch()
        return {"shard": shard}


class Meeting(Writer):
    """Does a shard when two workers have come."""

    def shard(self, shard: int) -> dict[str, int]:
        (self.folder / f"worker-{os.getpid()}").touch()
        deadline = time.monotonic() + 60
        while len(list(self.folder.glob("worker-*"))) < 2:
            assert time.monotonic() < deadline, "nobody came"
            time.sleep(0.01)
        return super().shard(shard)


class Broken:
    def __init__(self, reason: str) -> None:
        raise RuntimeError(reason)

    def shard(self, shard: int) -> dict[str, int]:
        return {}


class Refusing:
    def shard(self, shard: int) -> dict[str, int]:
        if shard == 1:
            raise JobError("shard 1 is no good")
        return {"shard": shard}


def test_all_shards_are_done_by_several_workers(local_ray: None, tmp_path: Path) -> None:
    counts = list(run_shards(Meeting, (str(tmp_path), (), 0), range(20), num_workers=2))
    assert sorted(count["shard"] for count in counts) == list(range(20))
    assert len(list(tmp_path.glob("worker-*"))) == 2
    assert list(run_shards(Writer, (str(tmp_path), (), 0), [], num_workers=2)) == []


def test_the_shard_of_a_worker_that_dies_is_done_by_another(local_ray: None, tmp_path: Path) -> None:
    counts = list(run_shards(Writer, (str(tmp_path), (1, 3), 2), range(5), num_workers=2))
    assert sorted(count["shard"] for count in counts) == list(range(5))
    assert len(list(tmp_path.glob("try-1-*"))) == len(list(tmp_path.glob("try-3-*"))) == 3


def test_a_shard_that_always_ends_its_worker_ends_the_job(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=f"{LOSSES_IN_A_ROW_AT_MOST + 1} workers died in a row"):
        list(run_shards(Writer, (str(tmp_path), (0,), 10**9), [0], num_workers=1))
    assert not (tmp_path / "done-0").exists()


def test_a_worker_that_cannot_be_made_ends_the_job_at_once(local_ray: None) -> None:
    with pytest.raises(RayActorError, match="no such model"):
        list(run_shards(Broken, ("no such model",), [0, 1], num_workers=1))


def test_an_error_in_a_shard_is_raised_and_the_workers_are_gone(local_ray: None) -> None:
    with pytest.raises(JobError, match="shard 1 is no good"):
        list(run_shards(Refusing, (), [0, 1, 2], num_workers=1))
