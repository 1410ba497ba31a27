"""prepare while its workers, its nodes and itself are killed: the dataset is that of an undisturbed run, byte for byte."""

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from audiodiff_platform.prepare import PrepareOptions, prepare

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120


class SimulatedCluster:
    """A head without CPUs and two nodes with one each, on this machine."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill_worker(self, chance: random.Random) -> None:
        raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in self.nodes]
        deadline = time.monotonic() + DEADLINE_S
        while not (workers := [child for raylet in raylets for child in raylet.children() if "PrepareWorker" in _title(child)]):
            assert time.monotonic() < deadline, "there is no worker to kill"
        chance.choice(workers).kill()

    def kill_node(self, chance: random.Random) -> None:
        """Ends a node with all its processes, at once; another takes its place."""
        node = chance.choice(self.nodes)
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)
        self.nodes.append(self.cluster.add_node(num_cpus=1))


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):  # it may end meanwhile
        return " ".join(process.cmdline())
    return ""


@pytest.fixture
def cluster() -> Iterator[SimulatedCluster]:
    made = SimulatedCluster()
    yield made
    made.cluster.shutdown()


class Driver:
    """`jobs/prepare.py` as a process on the simulated cluster, begun again whenever it is killed."""

    def __init__(self, cluster: SimulatedCluster, flags: dict[str, Any], log: Path) -> None:
        self.command = [sys.executable, "jobs/prepare.py", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]
        self.environment = {**os.environ, "RAY_ADDRESS": cluster.cluster.address}
        self.log = log.open("w")
        self.begin()

    def begin(self) -> None:
        self.process = subprocess.Popen(self.command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=self.log, text=True)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


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
    driver = Driver(cluster, flags, folder / "log")
    for kind in kinds:
        assert _work_goes_on(driver, out, than=_commits(out)), (folder / "log").read_text()[-4_000:]
        with contextlib.suppress(subprocess.TimeoutExpired):  # a random moment, which the end of the job would cut short
            driver.process.wait(chance.uniform(0, 1))
        match kind:
            case "worker":
                cluster.kill_worker(chance)
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
