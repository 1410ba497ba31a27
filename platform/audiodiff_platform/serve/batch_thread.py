"""Threads of a served model: one samples the batch, one renders finished loops, one writes their files.

    thread.admit(job)     on the event loop: refuse the job, or put it into the queue
    thread.enter(job)     after its sources are decoded: the job joins the batch between two steps
    thread.cancel(job)    at any time: the job leaves the queue or the batch before the next step

Each job is told its events as they happen. A job fails alone, unless the network itself fails.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from audiodiff_core.audio import AudioDecodeError
from audiodiff_core.mel import Images
from audiodiff_core.mel.png import encode_png
from audiodiff_core.pipeline import Failure, Loop, LoopPipeline, Step
from audiodiff_core.pipeline.rendering import Rendering
from audiodiff_core.pipeline.task_batch import Started
from audiodiff_platform.serve.admission import QueueLimit, calls_until_a_slot
from audiodiff_platform.serve.calls import Audio, Event, Failed, Joined, Preview, Progress
from audiodiff_platform.serve.errors import INTERNAL, ApiError, Problem
from audiodiff_platform.serve.metrics import ModelMetrics
from audiodiff_platform.serve.refusals import QUEUE_FULL

MAX_RENDERING = 4
"""Largest number of groups of results that wait for their rendering. Sampling then waits for the first."""
STEP_WEIGHT = 0.2
"""Weight of the newest step in the mean duration of steps."""

logger = logging.getLogger("ray.serve")


@dataclass(eq=False)
class Job:
    """A request in the queue or in the batch.

    Attributes:
        started: The task of the request.
        calls: Estimate of its network calls.
        slots: Batch slots that it takes.
        tell: Called with each event, on any thread.
        finish: Function that makes the audio file of the loop. It runs on a thread of its own.
        progress: Whether to tell every step.
        preview_every: Number of steps between previews, or 0 for none.
        seconds: Seconds per stage so far.
    """

    started: Started
    calls: int
    slots: int
    tell: Callable[[Event], None]
    finish: Callable[[Loop, dict[str, float]], Audio]
    progress: bool = False
    preview_every: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    calls_made: int = 0
    can_join: bool = False
    is_cancelled: bool = False
    stage_began: float = field(default_factory=time.monotonic)

    @property
    def calls_left(self) -> tuple[int, int]:
        """Network calls to come, and slots."""
        return max(1, self.calls - self.calls_made), self.slots

    def end_stage(self, stage: str) -> None:
        """Record the seconds since the end of the previous stage."""
        now = time.monotonic()
        self.seconds[stage], self.stage_began = now - self.stage_began, now


class BatchThread:
    """Continuous batching of the requests to one model.

    Args:
        pipeline: The pipeline of the model.
        queue_slots: Slots of the requests that can wait.
        max_wait_s: Longest estimated wait of a request that is admitted.
        metrics: Metrics of the model.
    """

    def __init__(self, pipeline: LoopPipeline, queue_slots: int, max_wait_s: float, metrics: ModelMetrics) -> None:
        self._pipeline, self._metrics = pipeline, metrics
        self.session = pipeline.session()
        self.slots, self._max_wait_s = pipeline.profile.batch_size, max_wait_s
        self._queue = QueueLimit(queue_slots, self.slots)
        self.step_s = 0.0
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._is_closing = self.is_closed = False
        self._step_began: float | None = None
        self._rendering: deque[Future[None]] = deque()
        self._writing: list[Future[None]] = []
        self._renderer, self._writer = ThreadPoolExecutor(1, "render"), ThreadPoolExecutor(1, "write")
        self._thread = threading.Thread(target=self._run, name="sample", daemon=True)
        self._thread.start()

    def admit(self, job: Job) -> tuple[int, float]:
        """Put a job into the queue.

        Returns:
            The number of jobs before it, and the estimate of its wait in seconds.

        Raises:
            ApiError: The queue is full, or the estimated wait is too long.
        """
        with self._changed:
            self._queue.arrived(job.slots, self.step_s * job.calls)
            place = self.require_room(job.slots)
            self._waiting.append(job)
            return place

    def require_room(self, slots: int = 1) -> tuple[int, float]:
        """Return what `admit` would return for a job of `slots` slots, or raise its error."""
        with self._changed:
            if self.is_closed:
                raise ApiError(Problem(503, "the model was unloaded: try again", "model_unloaded", None, 1.0))
            running = [other.calls_left for other in self._running.values()]
            waiting = [other.calls_left for other in self._waiting]
            wait_s = self.step_s * calls_until_a_slot(self.slots, running, waiting)
            room = self._queue.slots + max(0, self.slots - sum(own for _, own in running))
            if sum(own for _, own in waiting) + slots > room:
                self._queue.refused()
                raise ApiError(Problem(503, "the queue is full: try again later", QUEUE_FULL, None, max(1.0, wait_s)))
            if wait_s > self._max_wait_s:
                self._queue.refused()
                message = f"the wait would be {wait_s:.0f} s, longer than {self._max_wait_s:g} s: try again later"
                raise ApiError(Problem(503, message, "wait_too_long", None, wait_s - self._max_wait_s))
            return len(waiting), wait_s

    def enter(self, job: Job) -> None:
        """Let an admitted job join the batch."""
        with self._changed:
            job.can_join = True
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Stop a job before the next step. Its events end."""
        with self._changed:
            job.is_cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
            self._changed.notify()

    def close(self) -> None:
        """End the threads after the jobs in progress, without waiting for them."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    @property
    def load(self) -> tuple[int, int]:
        """Number of jobs in the queue, and in the batch."""
        return len(self._waiting), len(self._running)

    @property
    def seconds_in_step(self) -> float:
        """Seconds since the step in progress began, or 0."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def _run(self) -> None:
        while self._has_work():
            self._leave()
            while self.session.has_room and (job := self._next()) is not None:
                self._join(job)
            self._step()
            self._hand_over()
        for executor in (self._renderer, self._writer):
            executor.shutdown()

    def _has_work(self) -> bool:
        """Wait for work. Return False if the thread is to end."""
        with self._changed:
            while not self._running and not any(job.can_join for job in self._waiting):
                if self._is_closing and not self._waiting:
                    self.is_closed = True
                    return False
                self._changed.wait()
        return True

    def _leave(self) -> None:
        with self._changed:
            leaving = [number for number, job in self._running.items() if job.is_cancelled]
            jobs = [self._running.pop(number) for number in leaving]
        for job in jobs:
            self.session.cancel(job.started)

    def _next(self) -> Job | None:
        with self._changed:
            job = next((job for job in self._waiting if job.can_join), None)
            if job is not None:
                self._waiting.remove(job)
                self._running[job.started.number] = job
            return job

    def _join(self, job: Job) -> None:
        job.end_stage("queue")
        job.tell(Joined(job.seconds["queue"]))
        try:
            self.session.add(job.started)
        except Exception:
            logger.exception("request could not start")
            self._drop(job.started.number, INTERNAL)

    def _step(self) -> None:
        if not len(self.session):
            return
        rows = sum(job.slots for job in self._running.values())
        self._step_began = began = time.monotonic()
        try:
            self.session.step(self._on_step)
        except Exception:
            logger.exception("a step failed, and all requests in the batch with it")
            self.session = self._pipeline.session()
            problem = Problem(503, "the network failed: try again", "step_failed", None, 1.0)
            for number in list(self._running):
                self._drop(number, problem)
        else:
            step_s = time.monotonic() - began
            self.step_s += (step_s - self.step_s) * (STEP_WEIGHT if self.step_s else 1.0)
            self._metrics.stepped(step_s, rows, self.slots)
        finally:
            self._step_began = None

    def _on_step(self, step: Step) -> None:
        job = self._running[step.number]
        job.calls_made += 1
        self._metrics.request_stepped()
        if job.progress:
            job.tell(Progress(step.step, step.steps))
        if job.preview_every and step.step % job.preview_every == 0 and step.step < step.steps:
            self._writer.submit(_tell_preview, job, step.step, step.preview())

    def _hand_over(self) -> None:
        """Pass the results of the step on to the rendering thread."""
        ready, failures = self.session.results()
        for failure in failures:
            self._drop(failure.number, problem_of(failure.error))
        if ready:
            with self._changed:
                jobs = {result.number: self._running.pop(result.number) for result in ready}
            for job in jobs.values():
                job.end_stage("sample")
            self._rendering.append(self._renderer.submit(self._render, ready, jobs))
        while self._rendering and (self._rendering[0].done() or len(self._rendering) > MAX_RENDERING):
            self._rendering.popleft().result()

    def _render(self, ready: list[Rendering], jobs: dict[int, Job]) -> None:
        wanted = [result for result in ready if not jobs[result.number].is_cancelled]
        for written in self._writing:
            written.result()
        try:
            outcomes = list(self.session.render(wanted))
        except Exception:
            logger.exception("loops could not be rendered")
            for result in wanted:
                jobs[result.number].tell(Failed(INTERNAL))
            return
        self._writing = [self._writer.submit(self._write, jobs[outcome.number], outcome) for outcome in outcomes]

    def _write(self, job: Job, outcome: Loop | Failure) -> None:
        job.end_stage("render")  # with the wait for the file of the loop before
        if isinstance(outcome, Failure):
            job.tell(Failed(problem_of(outcome.error)))
        elif not job.is_cancelled:
            try:
                job.tell(job.finish(outcome, job.seconds))
            except Exception:
                logger.exception("the file of a loop could not be made")
                job.tell(Failed(INTERNAL))

    def _drop(self, number: int, problem: Problem) -> None:
        with self._changed:
            job = self._running.pop(number, None)
        if job is not None:
            job.tell(Failed(problem))


def problem_of(error: Exception) -> Problem:
    """Return what a client is told about the failure of its request."""
    message = " ".join(str(error).split())
    if isinstance(error, AudioDecodeError):
        return Problem(422, message, "undecodable_audio", "audio")
    if isinstance(error, FloatingPointError):
        return Problem(500, message, "not_finite")
    if isinstance(error, OSError):
        return Problem(503, "the storage of the server failed: try again", "storage_failed", None, 1.0)
    return Problem(422, message, "invalid_value")


def _tell_preview(job: Job, step: int, image: Images) -> None:
    if not job.is_cancelled:
        job.tell(Preview(step, encode_png(image)))
