"""Folder of results: where it is, how large it may be, and how long results are kept in it."""

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import ray

from audiodiff_platform.cluster.capacity import grows
from audiodiff_platform.serve.errors import ApiError, Problem
from audiodiff_platform.serve.expiry import Expiry
from audiodiff_platform.serve.idempotency import IdempotentRequests
from audiodiff_platform.serve.options import ServeOptions
from audiodiff_platform.serve.results import JobNotFoundError, Jobs
from audiodiff_platform.serve.task_folder import DamagedResultError, ResultsFullError, TaskFolder
from audiodiff_platform.storage import Folder

LEASE_S = 15.0
"""Time after which the jobs of a replica that was killed are run by another."""
SWEEP_EVERY_S = 300.0

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("ray.serve")

NO_RESULTS = Problem(501, "this server keeps no results: start it with results_dir", "no_results")


@dataclass(frozen=True)
class Results:
    """Jobs and stored responses in one folder.

    Attributes:
        jobs: The jobs.
        responses: The responses by Idempotency-Key.
        expiry: The removal of what has expired.
    """

    jobs: Jobs
    responses: IdempotentRequests
    expiry: Expiry

    @classmethod
    def of(cls, options: ServeOptions) -> "Results":
        """Open the folder of `results_dir`.

        Raises:
            ValueError: The folder cannot be used.
        """
        assert options.results_dir is not None
        folder = made(options.results_dir)
        tasks = TaskFolder(folder, int(options.results_gb * 1e9), LEASE_S)
        ttl_s = options.results_ttl_s
        return cls(Jobs(tasks, ttl_s), IdempotentRequests(tasks, ttl_s), Expiry(tasks, ttl_s))

    async def keep_clean(self) -> None:
        """Remove what has expired, now and every few minutes, until the task is cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.expiry.sweep)
            except OSError:
                logger.exception("expired results could not be removed")
            await asyncio.sleep(SWEEP_EVERY_S)


def made(uri: str) -> Folder:
    """Return the folder of results. A new local folder is readable by its user alone.

    Raises:
        ValueError: The folder cannot be used.
    """
    folder = Folder(uri)
    if folder.is_local:
        try:
            Path(folder.root).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"results_dir {uri} cannot be used ({error}): set another") from error
    return folder


def results_dir(options: ServeOptions) -> str | None:
    """Return the folder of results, or None if the nodes of the cluster share no folder that is known.

    Without an option, the results are in a folder of this user on this machine, apart for each port.
    """
    if options.results_dir is not None:
        return options.results_dir
    if ray.is_initialized() and (grows() or sum(node["Alive"] for node in ray.nodes()) > 1):
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return str(cache / "audiodiff" / f"results-{options.port}")


async def on_results(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that reads or writes results, on a thread.

    Raises:
        ApiError: There is no such job, no space, a result is damaged, or the disk or store failed.
    """
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except JobNotFoundError as error:
        raise ApiError(Problem(404, str(error), "job_not_found")) from error
    except ResultsFullError as error:
        logger.exception("there is no space for results")
        message = "the server has no space for results: delete jobs, or try again later"
        raise ApiError(Problem(507, message, "results_full")) from error
    except DamagedResultError as error:
        raise ApiError(Problem(410, str(error), "result_damaged")) from error
    except OSError as error:
        logger.exception("the folder of results failed")
        raise ApiError(
            Problem(503, "the storage of the server failed: try again", "storage_failed", None, 5.0)
        ) from error
