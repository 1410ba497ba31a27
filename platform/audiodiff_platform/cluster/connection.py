"""The Ray that a job runs on."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from audiodiff_platform.cluster.private_ray import JOB_CONFIG_VARIABLE

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # more workers, not more threads, use more cores; the thread count changes the last bits
    "RAY_DATA_USAGE_DISABLED": "1",  # one control actor fewer
}


def inside_submitted_job() -> bool:
    """Return True in the entry point of a job that was submitted to a cluster."""
    return JOB_CONFIG_VARIABLE in os.environ


def runs_locally() -> bool:
    """Return True if `connected` would start a Ray of its own on this machine."""
    return not ray.is_initialized() and not inside_submitted_job() and "RAY_ADDRESS" not in os.environ


@contextmanager
def connected(dashboard: bool = False) -> Iterator[None]:
    """Connect to Ray: the current connection, else RAY_ADDRESS or the submitted job's cluster, else a local Ray.

    Args:
        dashboard: Start the dashboard of a local Ray, which Ray Train asks for the state of its actors.
    """
    os.environ.update({name: value for name, value in WORKER_ENVIRONMENT.items() if name.startswith("RAY_")})
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    if runs_locally():  # workers inherit this process's variables
        os.environ.update(WORKER_ENVIRONMENT)
        ray.init(address="local", include_dashboard=dashboard, logging_level="ERROR")
    else:
        job = json.loads(os.environ.get(JOB_CONFIG_VARIABLE, "{}"))
        stated = job.get("runtime_env", {}).get("env_vars", {})
        variables = {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in stated}
        ray.init(runtime_env={"env_vars": variables}, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()
