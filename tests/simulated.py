"""A Ray cluster of several nodes on this machine, and jobs that run on it as separate processes.

Tests kill the processes of the cluster.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from audiodiff_platform.storage import Folder

ROOT = Path(__file__).parents[1]
DEADLINE_S = 600  # a lease on a store lasts 60 s, and Ray starts slowly on a busy machine
WORKERS = {
    "prepare": ("PrepareWorker",),
    "encode": ("LatentsWorker",),
    "generate": ("GenerateWorker", "CandidateWorker", "DeliveryWorker"),
}
FINISHER = "GenerateFinisher"


class SimulatedCluster:
    """A head node without CPUs, and worker nodes with `cpus` CPUs and `gpus` GPUs each. The GPUs do not exist."""

    def __init__(self, nodes: int = 2, cpus: int = 1, gpus: int = 0) -> None:
        self.cpus, self.gpus = cpus, gpus
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.nodes: list[Any] = []
        for _ in range(nodes):
            self.add_node()

    def add_node(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=self.cpus, num_gpus=self.gpus))

    def kill_worker(self, names: Sequence[str], chance: random.Random) -> None:
        """Kill a random process whose title contains one of `names`, after waiting until such a process exists."""
        raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in self.nodes]
        deadline = time.monotonic() + DEADLINE_S
        while not (
            workers := [
                child
                for raylet in raylets
                for child in raylet.children()
                if any(name in _title(child) for name in names)
            ]
        ):
            assert time.monotonic() < deadline, "there is no worker to kill"
        chance.choice(workers).kill()

    def kill_node(self, chance: random.Random) -> None:
        """End a random node with all its processes at once, and add a new node."""
        node = chance.choice(self.nodes)
        self.remove_node(node)
        self.add_node()

    def remove_node(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def announce_preemption(self, node: Any, deadline_s: int) -> None:
        """Announce to Ray that a node will be taken away, as clouds do."""
        ray = Path(sys.executable).with_name("ray")
        reason = [
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "test",
            "--deadline-remaining-seconds",
            str(deadline_s),
        ]
        subprocess.run(
            [ray, "drain-node", "--address", self.cluster.address, "--node-id", node.node_id, *reason],
            check=True,
            capture_output=True,
        )


class Driver:
    """Process of `jobs/VERB.py` on the simulated cluster, which tests start again after each kill."""

    def __init__(self, cluster: SimulatedCluster, verb: str, flags: dict[str, Any], log: Path) -> None:
        given = ([f"--{name}"] if value is True else [f"--{name}", str(value)] for name, value in flags.items())
        self.command = [sys.executable, f"jobs/{verb}.py", *chain.from_iterable(given)]
        self.environment = {**os.environ, "RAY_ADDRESS": cluster.cluster.address}
        self.log = log.open("w")
        self.begin()

    def begin(self) -> None:
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=self.log, text=True
        )

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *failure: object) -> None:
        self.kill()
        self.log.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _commits(out: Folder) -> int:
    """Return the number of committed shards, with those of the candidates of a quality gate."""
    return len(out.names("_commits/*.json")) + len(out.names("_candidates/_commits/*.json"))


def work_goes_on(driver: Driver, out: Folder, than: int) -> bool:
    """Wait for more than `than` commits; return False if the job ends before."""
    deadline = time.monotonic() + DEADLINE_S
    while _commits(out) <= than:
        if driver.process.poll() is not None:
            return False
        assert time.monotonic() < deadline, f"no shard was committed: {Path(driver.log.name).read_text()[-4_000:]}"
        time.sleep(0.05)
    return True


def run_with_kills(
    cluster: SimulatedCluster, verb: str, flags: dict[str, Any], kinds: list[str], chance: random.Random, log: Path
) -> dict[str, Any]:
    """Run a job with kills and return the summary of its last run.

    Each kill of `kinds` comes at a random moment after a commit.
    """
    out = Folder(flags["output_dir"])
    with Driver(cluster, verb, flags, log) as driver:
        for kind in kinds:
            assert work_goes_on(driver, out, than=_commits(out)), log.read_text()[-4_000:]
            # A random moment. The end of the job cuts the wait short.
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.process.wait(chance.uniform(0, 1))
            match kind:
                case "worker":
                    cluster.kill_worker(WORKERS[verb], chance)
                case "finisher":
                    cluster.kill_worker((FINISHER,), chance)
                case "node":
                    cluster.kill_node(chance)
                case "driver":
                    driver.kill()
                    driver.begin()
        printed, _ = driver.process.communicate(timeout=600)
        assert driver.process.returncode == 0, log.read_text()[-4_000:]
        return dict(json.loads(printed.splitlines()[-1]))


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):  # the process may end meanwhile
        return " ".join(process.cmdline())
    return ""
