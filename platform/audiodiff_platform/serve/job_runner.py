"""Running of jobs, in every ingress replica: it claims jobs that no live replica has, whichever replica accepted them.

A replica that ends releases its jobs, and another claims them at once. The jobs of a replica that was killed are
claimed when its lease ends.
"""

import asyncio
import logging
import time
from contextlib import suppress

from audiodiff_platform.serve.job_run import JobRun
from audiodiff_platform.serve.result_folder import Results
from audiodiff_platform.serve.results import JobNotFoundError
from audiodiff_platform.serve.running_job import RunningJob
from audiodiff_platform.serve.services import Services

JOBS_AT_ONCE = 8
"""Largest number of jobs that a replica has claimed."""
REQUESTS_AT_ONCE = 8
"""Largest number of requests of jobs that a replica has in the generation deployment."""
LOOK_EVERY_S = 5.0
"""Time between two looks for jobs of other replicas."""
DURATION_WEIGHT = 0.2
"""Weight of the newest job in the mean duration of jobs."""

logger = logging.getLogger("ray.serve")


class JobRunner:
    """Running of jobs by this process.

    Args:
        services: The generation deployment.
        results: The folder of results.
    """

    def __init__(self, services: Services, results: Results) -> None:
        self._services, self._jobs = services, results.jobs
        self._slots = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._look = asyncio.Event()
        self._mean_s: float | None = None

    def look(self) -> None:
        """Look for new jobs at once."""
        self._look.set()

    def stop(self, job_id: str) -> None:
        """Stop a job before its next step, if this process runs it. Its end is stored already."""
        if (task := self._running.get(job_id)) is not None:
            task.cancel()

    def estimate_s(self, position: int) -> float | None:
        """Estimate the time until the end of a job from the jobs before it in the queue, or None before the first."""
        return None if self._mean_s is None else round(self._mean_s * (1 + position / JOBS_AT_ONCE), 1)

    async def run(self) -> None:
        """Claim and run jobs until the task is cancelled. The jobs that have not ended are then released."""
        try:
            while True:
                self._look.clear()
                try:
                    await self._claim()
                except OSError:
                    logger.exception("the folder of results failed: jobs are looked for again")
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._look.wait(), LOOK_EVERY_S)
        finally:
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _claim(self) -> None:
        """Claim jobs as long as there are some, and this process can run more."""
        if len(self._running) >= JOBS_AT_ONCE:
            return
        for owner, job_id in await asyncio.to_thread(lambda: list(self._jobs.unfinished())):
            if len(self._running) >= JOBS_AT_ONCE:
                return
            if job_id in self._running:  # its lease ended although this process lives: its next heartbeat tells
                continue
            with suppress(JobNotFoundError):
                running = await asyncio.to_thread(self._jobs.claim, owner, job_id)
                if running is not None:
                    self._running[job_id] = asyncio.create_task(self._run(running))

    async def _run(self, running: RunningJob) -> None:
        began = time.monotonic()
        try:
            await JobRun(running, self._services, self._slots).run()
            duration_s = time.monotonic() - began
            known = duration_s if self._mean_s is None else self._mean_s
            self._mean_s = known + DURATION_WEIGHT * (duration_s - known)
        finally:
            del self._running[running.job.id]
            self._look.set()
