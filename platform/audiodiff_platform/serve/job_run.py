"""The run of one job: its requests go to the generation deployment, its progress and its results to the folder."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Literal, TypeVar

from audiodiff_platform.serve.calls import Accepted, Audio, Event, Failed, Joined, Progress
from audiodiff_platform.serve.errors import INTERNAL, ApiError, Problem
from audiodiff_platform.serve.running_job import RunningJob
from audiodiff_platform.serve.services import LOST, Services
from audiodiff_platform.serve.stored_calls import restored
from audiodiff_platform.serve.task_folder import ResultsFullError, TaskEndedError

HEARTBEAT_S = 1.0
MAX_PAUSE_S = 10.0
MAX_FAILURES = 3
"""Number of failures after which a request is not repeated again."""
FAILURES = frozenset({LOST.code, "step_failed", "decoding_slow"})
"""Codes of refusals that the request itself may cause, at the expense of its neighbours."""

T = TypeVar("T")

logger = logging.getLogger("ray.serve")


class JobRun:
    """The run of a job by this process. Cancelling the task of `run` stops sampling before the next step.

    Args:
        running: The claim of the job.
        services: The generation deployment.
        slots: What bounds the requests of all jobs at the same time.
    """

    def __init__(self, running: RunningJob, services: Services, slots: asyncio.Semaphore) -> None:
        self._running, self._services, self._slots = running, services, slots
        self._began: float | None = None
        self._shares = [0.0] * len(running.job.requests)
        self._progress: dict[str, Any] = {"count": len(self._shares), "done": 0, "progress": 0.0}
        self._files = ThreadPoolExecutor(1, "job")  # one thread keeps the order of heartbeats and the end

    async def run(self) -> None:
        """Run the requests, and end the job. If the task is cancelled, another process can claim the job at once."""
        job_id = self._running.job.id
        items = [asyncio.ensure_future(self._item(*numbered)) for numbered in enumerate(self._running.job.requests)]
        work = asyncio.gather(*items)
        beating = asyncio.ensure_future(self._beat())
        try:
            await asyncio.wait((work, beating), return_when=asyncio.FIRST_COMPLETED)
            if beating.done():
                beating.result()
            await self._end(work.result())
        except TaskEndedError:
            logger.info("job %s was cancelled, deleted or taken over", job_id)
        except ResultsFullError:
            logger.exception("job %s failed: there is no space for its results", job_id)
            await self._fail("results_full", "the server has no space for the results: delete jobs, then try again")
        except OSError:
            logger.exception("job %s failed: the folder of results failed", job_id)
            await self._fail("storage_failed", "the storage of the server failed: create the job again")
        except Exception:
            logger.exception("job %s failed", job_id)
            await self._fail("internal_error", "the server failed: create the job again")
        except asyncio.CancelledError:
            await self._release()
            raise
        finally:
            for task in (*items, beating):
                task.cancel()
            await asyncio.gather(*items, beating, work, return_exceptions=True)
            self._files.shutdown(wait=False)

    async def _item(self, index: int, entry: dict[str, Any]) -> Problem | None:
        """Run a request, and store its result. Return its problem if it has none."""
        async with self._slots:
            outcome = await self._outcome(index, entry)
        if isinstance(outcome, Audio):
            provenance = outcome.provenance
            details = {
                "seed": provenance["request"]["seed"],
                "model": provenance["model"],
                "digest": provenance["model_digest"],
                "duration_s": provenance["duration_s"],
            }
            await self._on_disk(self._running.add, index, outcome.content, outcome.media_type, details)
            problem = None
        else:
            problem = outcome
            self._running.add_error(index, problem.code, problem.message)
        self._shares[index] = 1.0
        self._progress["done"] += 1
        return problem

    async def _outcome(self, index: int, entry: dict[str, Any]) -> Audio | Problem:
        """Return the result of a request, which waits as long as the server is full."""
        try:
            call = await self._on_disk(restored, entry, self._running.input)
            call = self._services.addressed(call)
        except ApiError as error:
            return error.problem
        except ValueError as error:
            return Problem(422, " ".join(str(error).split()), "invalid_value")
        failures = 0
        while True:
            last: Event = Failed(LOST)
            async with aclosing(self._services.events(call)) as events:
                async for last in events:
                    self._note(index, last)
            if isinstance(last, Audio):
                return last
            problem = last.problem if isinstance(last, Failed) else INTERNAL
            failures += problem.code in FAILURES
            if problem.status not in (429, 503) or failures >= MAX_FAILURES:
                return problem
            await asyncio.sleep(min(MAX_PAUSE_S, problem.retry_after_s or 1.0))

    def _note(self, index: int, event: Event) -> None:
        """Take over what an event tells about the progress."""
        if isinstance(event, Accepted) and self._began is None:
            self._progress["queue_position"] = event.position
        elif isinstance(event, Joined) and self._began is None:
            self._began = time.monotonic()
            self._progress.pop("queue_position", None)
        elif isinstance(event, Progress):
            self._shares[index] = max(self._shares[index], event.step / event.steps)
            self._progress |= {"step": event.step, "steps": event.steps}

    async def _beat(self) -> None:
        while True:
            share = sum(self._shares) / len(self._shares)
            self._progress["progress"] = round(100 * share, 1)
            if self._began is not None and share > 0:
                self._progress["estimate_s"] = round((time.monotonic() - self._began) * (1 - share) / share, 1)
            status: Literal["queued", "in_progress"] = "queued" if self._began is None else "in_progress"
            try:
                await self._on_disk(self._heartbeat, status, dict(self._progress))
            except OSError:  # the claim ends with the lease, unless a later heartbeat succeeds
                logger.exception("the progress of job %s could not be stored", self._running.job.id)
            await asyncio.sleep(HEARTBEAT_S)

    def _heartbeat(self, status: Literal["queued", "in_progress"], progress: dict[str, Any]) -> None:
        self._running.heartbeat(status, **progress)

    async def _end(self, problems: list[Problem | None]) -> None:
        first = problems[0]
        if first is not None and all(problems):
            await self._fail(first.code, first.message)
        else:
            await self._on_disk(self._running.complete)

    async def _fail(self, code: str, message: str) -> None:
        try:
            await self._on_disk(self._running.fail, code, message)
        except TaskEndedError:
            pass
        except OSError:  # the claim ends with the lease, and the job is run again
            logger.exception("the end of job %s could not be stored", self._running.job.id)

    async def _release(self) -> None:
        try:
            await self._on_disk(self._running.release)
        except OSError:  # the claim ends with the lease
            logger.exception("job %s could not be released", self._running.job.id)

    async def _on_disk(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, function, *arguments)
