"""Placement of training workers on clusters of several kinds of GPUs.

The GPUs are resources of Ray only. A driver in its own process chooses the workers, because this process may be
connected to another Ray.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from ray.cluster_utils import Cluster

TIMEOUT_S = 120
PRELUDE = """
import contextlib, dataclasses, io, json, sys
import ray
from ray.util.placement_group import placement_group
from audiodiff_platform.cluster.capacity import wait_for_places
from audiodiff_platform.cluster.gpu_kinds import least_gpu
from audiodiff_platform.train.options import TrainOptions
from audiodiff_platform.train.placement import group_for

def chosen(**options):
    return group_for(TrainOptions(dataset_name="none", output_dir="none", **options))

def outcome(**options):
    with contextlib.redirect_stderr(io.StringIO()) as lines:
        try:
            found = dataclasses.asdict(chosen(**options))
        except ValueError as error:
            found = {"error": str(error)}
    return {**found, "lines": lines.getvalue()}
"""
SEVERAL_KINDS = """
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
asked = {
    "default": {},
    "one kind": {"accelerator_type": "A100"},
    "no reading processes": {"data_workers": 0},
    "small batch": {"train_batch_size": 2},
    "elastic": {"num_workers": "2:8"},
    "elastic small batch": {"num_workers": "2:8", "train_batch_size": 4},
    "cpus": {"device": "cpu"},
    "too many reading processes": {"num_workers": 1, "data_workers": 16},
}
outcomes = {name: outcome(**options) for name, options in asked.items()}
wait_for_places(3, chosen().each)
try:
    least_gpu()
except ValueError as error:
    outcomes["without CUDA"] = {"error": str(error)}
print(json.dumps(outcomes))
"""
ONE_NODE = """
ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, logging_level="ERROR")
asked = {
    "default": {},
    "reading processes": {"data_workers": 4},
    "workers": {"num_workers": 2},
    "kind": {"accelerator_type": "H100"},
}
outcomes = {name: outcome(**options) for name, options in asked.items()}
ray.shutdown()
ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, logging_level="ERROR")
outcomes["whole node"] = outcome()
reserved = placement_group([{"CPU": 2}])
reserved.wait()
outcomes["beside another job"] = outcome()
print(json.dumps(outcomes))
"""
KIND_TO_COME = """
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print(json.dumps(dataclasses.asdict(chosen(accelerator_type="H100"))))
"""


def _driver(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _printed(driver: subprocess.Popen[str]) -> Any:
    out, err = driver.communicate(timeout=TIMEOUT_S)
    assert driver.returncode == 0, err
    return json.loads(out.splitlines()[-1])


pytestmark = pytest.mark.soak_short  # several clusters are started


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head node without CPUs, a node with two GPUs, and a small node with one of another kind."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.add_node(num_cpus=8, num_gpus=2, resources={"accelerator_type:A100": 1})
    made.add_node(num_cpus=2, num_gpus=1, resources={"accelerator_type:L4": 1})
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def outcomes(cluster: Cluster) -> Any:
    return _printed(_driver(SEVERAL_KINDS, cluster.address))


@pytest.mark.parametrize(
    ("name", "workers", "cpus", "accelerator_type"),
    [
        ("default", 3, 2, None),
        ("one kind", 2, 4, "A100"),
        ("no reading processes", 3, 1, None),
        ("small batch", 2, 2, None),
        ("elastic", [2, 8], 2, None),
        ("elastic small batch", [2, 4], 2, None),
    ],
)
def test_gpu_workers_reserve_the_cpus_that_feed_them(
    outcomes: Any, name: str, workers: Any, cpus: int, accelerator_type: str | None
) -> None:
    found = outcomes[name]
    lines = found.pop("lines")
    assert found == {"workers": workers, "gpu": True, "cpus": cpus, "accelerator_type": accelerator_type}
    kinds = "the cluster has GPUs of several kinds (A100, L4): the slowest sets the pace of all"
    assert (kinds in lines) == (accelerator_type is None)
    used = "2 of 3 GPUs are used, because each worker needs a sample of a batch: train_batch_size 3 would use all"
    assert (used in lines) == (name == "small batch")
    assert "waiting" not in lines


def test_cpu_workers_reserve_one_cpu(outcomes: Any) -> None:
    found = outcomes["cpus"]
    assert (found["workers"], found["gpu"], found["cpus"]) == (10, False, 1)


def test_a_cluster_that_may_grow_is_waited_for(outcomes: Any) -> None:
    found = outcomes["too many reading processes"]
    assert (found["workers"], found["cpus"]) == (1, 17)
    assert "num_workers 1 needs 17 CPUs, the cluster has 10 now: waiting for it to grow" in found["lines"]


def test_gpus_that_torch_does_not_find_are_a_mistake(outcomes: Any) -> None:
    assert "GPUs, but torch finds none there: install the driver" in outcomes["without CUDA"]["error"]


@pytest.mark.soak
def test_the_only_node_is_filled_and_what_never_fits_is_refused() -> None:
    found = _printed(_driver(ONE_NODE))
    placed = {name: outcome["cpus"] for name, outcome in found.items() if "cpus" in outcome}
    assert placed == {"default": 1, "whole node": 4, "beside another job": 2}
    assert {name: outcome["error"] for name, outcome in found.items() if "error" in outcome} == {
        "reading processes": "num_workers 1 needs 5 CPUs, the cluster has 1: set data_workers lower",
        "workers": "num_workers 2 needs 2 CPUs, the cluster has 1: use at most 1",
        "kind": "accelerator_type H100: the cluster has no GPU of this kind: "
        "leave accelerator_type out, Ray knows the kind of no GPU",
    }


@pytest.mark.soak
def test_the_first_node_of_a_kind_is_waited_for(cluster: Cluster) -> None:
    driver = _driver(KIND_TO_COME, cluster.address)
    assert driver.stderr is not None
    assert [driver.stderr.readline() for _ in range(3)] == [
        "accelerator_type H100: no node has GPUs of this kind now: waiting for one\n",
        "num_workers 1: the nodes have room for 0 workers of 1 CPU and 1 H100 GPU now: waiting for more nodes\n",
        "waiting until the cluster has room for 1 worker of 1 CPU and 1 H100 GPU\n",
    ]
    node = cluster.add_node(num_cpus=4, num_gpus=1, resources={"accelerator_type:H100": 1})
    assert _printed(driver) == {"workers": 1, "gpu": True, "cpus": 4, "accelerator_type": "H100"}
    cluster.remove_node(node)
