"""Connection of a job to a Ray cluster."""

import json
import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from audiodiff_platform.cluster.private_ray import JOB_CONFIG_VARIABLE

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # each worker uses one core; the number of threads changes the last bits of results
    "RAY_DATA_USAGE_DISABLED": "1",  # saves a control actor
}
"""Environment variables of every worker, unless the job sets them itself."""
HIDDEN_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment variables of workers on CPUs. Ray does not hide the GPUs of a node from workers that request none."""


def inside_submitted_job() -> bool:
    """Return True if this process is the entry point of a job that was submitted to a cluster."""
    return JOB_CONFIG_VARIABLE in os.environ


def runs_locally() -> bool:
    """Return True if `connected` would start a local Ray on this machine."""
    return not ray.is_initialized() and not inside_submitted_job() and "RAY_ADDRESS" not in os.environ


@contextmanager
def connected(dashboard: bool = False) -> Iterator[None]:
    """Connect to Ray, and disconnect at the end of the context.

    The current connection of this process is used if there is one, else the cluster of the submitted job or of
    RAY_ADDRESS. Otherwise, a local Ray is started on this machine.

    Args:
        dashboard: Start the dashboard of a local Ray. Ray Train reads the state of its actors from the dashboard.
    """
    os.environ.update({name: value for name, value in WORKER_ENVIRONMENT.items() if name.startswith("RAY_")})
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    if runs_locally():  # workers of a local Ray inherit the variables of this process
        os.environ.update(WORKER_ENVIRONMENT)
        ray.init(address="local", include_dashboard=dashboard, logging_level="ERROR")
    else:
        job = json.loads(os.environ.get(JOB_CONFIG_VARIABLE, "{}"))
        job_variables = job.get("runtime_env", {}).get("env_vars", {})
        variables = {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in job_variables}
        ray.init(runtime_env={"env_vars": variables}, logging_level="ERROR")
    try:
        yield
    except BaseException as failure:
        _release_frames(failure)
        raise
    finally:
        ray.shutdown()


def _release_frames(failure: BaseException) -> None:
    """Drop what the finished frames of an exception hold.

    An interrupted start of Ray Data leaves its execution in these frames alone. Its destructor calls Ray, and after the
    disconnection a call would start another local Ray.
    """
    pending: list[BaseException | None] = [failure]
    seen = set[int]()
    while pending:
        error = pending.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            pending += [error.__cause__, error.__context__]
