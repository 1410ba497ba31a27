"""Which Ray a job runs on, whether it can do what is asked, and which paths its nodes share."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.state import state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # more workers, not more threads, use more cores; the thread count moves the last bits
    "RAY_AIR_NEW_OUTPUT": "0",
}


def inside_submitted_job() -> bool:
    return RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ


@contextmanager
def connected() -> Iterator[None]:
    """A Ray to work on: the one this process is connected to, else RAY_ADDRESS or the submitted job's, else a local one."""
    if ray.is_initialized():
        yield
        return
    address = None if inside_submitted_job() or "RAY_ADDRESS" in os.environ else "local"
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(address=address, runtime_env={"env_vars": WORKER_ENVIRONMENT}, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def require_resources(workers: int, gpus_each: int = 0, option: str = "num_workers") -> None:
    """Raises ValueError where the cluster neither has nor can grow to a CPU (and `gpus_each` GPUs) for each worker."""
    limits = state.get_max_resources_from_cluster_config() or {}
    resources = ray.cluster_resources()
    for kind, needed in (("CPU", workers), ("GPU", workers * gpus_each)):
        available = int(max(resources.get(kind, 0), limits.get(kind, 0)))
        if needed > available:
            raise ValueError(f"{option} {workers} needs {needed} {kind}s, the cluster has {available}: use at most {available // max(1, needed // workers)}")


def cpus() -> int:
    """CPUs that the cluster has now, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def gpus() -> int:
    """GPUs that the cluster has now."""
    return int(ray.cluster_resources().get("GPU", 0))


def require_usable_path(option: str, uri: str) -> None:
    """Raises ValueError for a relative path in a submitted job: its working directory is a copy that vanishes."""
    if inside_submitted_job() and "://" not in uri and not Path(uri).is_absolute():
        raise ValueError(f"{option} {uri} is relative: in a submitted job use an absolute path that all nodes share, or s3:// or gs://")


def require_shared(option: str, uri: str) -> None:
    """Raises ValueError where a local folder of the driver's node is not seen by another node of the cluster."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if "://" in uri or len(nodes) < 2:
        return
    probe = ray.remote(num_cpus=0)(os.path.isdir)
    strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    seen = ray.get([probe.options(scheduling_strategy=strategy).remote(os.path.abspath(uri)) for strategy in strategies])
    if not all(seen):
        raise ValueError(f"{option} {uri} is not on {seen.count(False)} of {len(nodes)} nodes: use a shared path, or s3:// or gs://")


def say(message: str) -> None:
    """Progress and warnings for a person: standard error, since standard output ends with the summary (and Ray Train repeats what is printed)."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
