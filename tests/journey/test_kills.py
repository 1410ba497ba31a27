"""prepare while its workers, its nodes and itself are killed: the dataset is that of an undisturbed run, byte for byte."""

import contextlib
import hashlib
import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audiodiff_platform.prepare import PrepareOptions, prepare
from tests.simulated import DEADLINE_S, Driver, SimulatedCluster


@pytest.fixture
def cluster() -> Iterator[SimulatedCluster]:
    made = SimulatedCluster()
    yield made
    made.cluster.shutdown()


def _commits(out: Path) -> int:
    return len(list(out.glob("_commits/*.json")))


def _work_goes_on(driver: Driver, out: Path, than: int) -> bool:
    """Waits until there are more commits `than`; False where the job ends before."""
    deadline = time.monotonic() + DEADLINE_S
    while _commits(out) <= than:
        if driver.process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "no shard was committed"
        time.sleep(0.01)
    return True


def _data(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for kind in ("data", "quarantine") for file in (folder / kind).iterdir()}


def _run_with_kills(cluster: SimulatedCluster, flags: dict[str, Any], kinds: list[str], chance: random.Random, folder: Path) -> dict[str, Any]:
    """The summary of the job's last run, which `kinds` of kills went before, each at a random moment after some new work was committed."""
    out = Path(flags["output_dir"])
    with Driver(cluster, "prepare", flags, folder / "log") as driver:
        for kind in kinds:
            assert _work_goes_on(driver, out, than=_commits(out)), (folder / "log").read_text()[-4_000:]
            with contextlib.suppress(subprocess.TimeoutExpired):  # a random moment, which the end of the job would cut short
                driver.process.wait(chance.uniform(0, 1))
            match kind:
                case "worker":
                    cluster.kill_worker("PrepareWorker", chance)
                case "node":
                    cluster.kill_node(chance)
                case "driver":
                    driver.kill()
                    driver.begin()
        printed, _ = driver.process.communicate(timeout=600)
        assert driver.process.returncode == 0, (folder / "log").read_text()[-4_000:]
        return dict(json.loads(printed.splitlines()[-1]))


@pytest.mark.parametrize(
    ("kills", "copies"),
    [(3, 1), pytest.param(30, 5, marks=pytest.mark.soak)],
)
def test_nothing_is_lost_or_doubled(local_ray: None, loops: Path, tmp_path: Path, cluster: SimulatedCluster, kills: int, copies: int) -> None:
    source, whole, out = tmp_path / "in", tmp_path / "whole", tmp_path / "out"
    source.mkdir()
    for copy in range(copies):
        for loop in loops.glob("*.flac"):
            (source / f"{copy}-{loop.name}").symlink_to(loop)
    (source / "broken.wav").write_bytes(b"no audio")
    flags: dict[str, Any] = {"input_dir": str(source), "resolution": "64", "hop_length": 256, "overlap": 0.99, "shard_minutes": 0.001, "num_workers": 2}
    prepare(PrepareOptions(output_dir=str(whole), **flags))
    chance = random.Random(kills)
    kinds = ["worker", "node", "driver"] * (kills // 3)
    chance.shuffle(kinds)
    summary = _run_with_kills(cluster, {**flags, "output_dir": str(out)}, kinds, chance, tmp_path)
    assert _data(out) == _data(whole)
    assert (out / "_SUCCESS").read_bytes() == (whole / "_SUCCESS").read_bytes()
    assert summary["quarantined"] == 1
    assert not (out / "_tmp").exists()
