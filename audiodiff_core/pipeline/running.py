"""Running of tasks in one batch, and rendering of their results as they finish.

On a GPU, results are rendered on a thread, while the next steps are sampled.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from tqdm import tqdm

from audiodiff_core.mel import Images
from audiodiff_core.pipeline.loop import Failure, Loop
from audiodiff_core.pipeline.rendering import Renderer, Rendering
from audiodiff_core.pipeline.tasks import Task
from audiodiff_core.sampling import Batch, ExecutionProfile, Failed, Finished, Item, Outcome, Sampler
from audiodiff_core.sampling.requests import SeededRequest


@dataclass(frozen=True, eq=False)
class Started:
    """A task to run.

    Attributes:
        number: Index of the request in the call.
        request: The request, with all defaults filled in.
        task: The task.
    """

    number: int
    request: SeededRequest
    task: Task


@dataclass(frozen=True, eq=False)
class Step:
    """A step of a loop in progress.

    Attributes:
        number: Index of the request in the call.
        request: The request.
        step: Number of steps made of the current window or inversion.
        steps: Number of its steps.
        preview: Function that computes the mel image (y_res, width) predicted by the step, until the next step.
    """

    number: int
    request: SeededRequest
    step: int
    steps: int
    preview: Callable[[], Images]


OnStep = Callable[[Step], None]

MAX_QUEUED = 4
"""Largest number of groups of results that wait for their rendering. Sampling then waits for the first."""


MAX_BATCHES_WAITING = 4
"""Largest number of batches of tasks that wait for slots of their width, while other widths have free slots."""


class Runner:
    """Runner of tasks.

    Args:
        sampler: The sampler.
        renderer: The renderer.
        is_interactive: Whether the batch size follows the number of tasks.
        beside: Whether to render on a thread. None: if the device is not a CPU.

    Attributes:
        sampling_s: Seconds spent in steps of the sampler.
    """

    def __init__(
        self, sampler: Sampler, renderer: Renderer, is_interactive: bool = False, beside: bool | None = None
    ) -> None:
        self._sampler, self._renderer, self._is_interactive = sampler, renderer, is_interactive
        self._beside = sampler.profile.kind != "cpu" if beside is None else beside
        self.sampling_s = 0.0

    def run(
        self,
        started: Iterable[Started | Failure],
        count: int | None = None,
        on_step: OnStep | None = None,
        progress: bool = False,
    ) -> Iterator[Loop | Failure]:
        """Yield the loop or the failure of each task, in the order in which they finish.

        Args:
            started: The tasks, which may be unlimited in number. A task is consumed only when batch slots are free.
            count: Number of tasks, or None if it is not known.
            on_step: Called after every step for each loop in progress.
            progress: Whether to show a progress bar.
        """
        profile = self._sampler.profile
        if self._is_interactive:
            size = ExecutionProfile.interactive(count, profile.device).batch_size
            profile = profile.model_copy(update={"batch_size": size})
        batch = self._sampler.batch(profile.batch_size)
        run = _Run(batch, iter(started), on_step, self, MAX_BATCHES_WAITING * profile.batch_size)
        with ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=count, unit="loop", disable=not progress))
            finished: Iterator[Loop | Failure]
            if self._beside:
                finished = self._beside_sampling(run, profile, stack.enter_context(ThreadPoolExecutor(1)))
            else:
                finished = (
                    outcome
                    for ready in run.results()
                    for outcome in ([ready] if isinstance(ready, Failure) else self._renderer.render(ready, profile))
                )
            for outcome in finished:
                bar.update()
                yield outcome

    def step(self, batch: Batch) -> list[Outcome]:
        """Make a step of the sampler."""
        began = time.perf_counter()
        outcomes = batch.step()
        self.sampling_s += time.perf_counter() - began
        return outcomes

    def preview(self, sample: torch.Tensor, circular: bool) -> Images:
        """Convert a sample (channels, height, width) to a mel image (y_res, width)."""
        return self._renderer.preview(sample, circular)

    def _beside_sampling(
        self, run: "_Run", profile: ExecutionProfile, executor: ThreadPoolExecutor
    ) -> Iterator[Loop | Failure]:
        """Render on a thread, and yield what is ready after each step."""
        rendered: deque[Future[list[Loop | Failure]]] = deque()
        stream = torch.cuda.Stream(profile.device) if profile.on_gpu else None

        def render(ready: list[Rendering]) -> list[Loop | Failure]:
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                return list(self._renderer.render(ready, profile))

        try:
            for ready in run.results(each_step=True):
                if isinstance(ready, Failure):
                    yield ready
                elif ready:
                    rendered.append(executor.submit(render, ready))
                while rendered and (rendered[0].done() or len(rendered) > MAX_QUEUED):
                    yield from rendered.popleft().result()
            while rendered:
                yield from rendered.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)


class _Run:
    """Tasks in progress in one batch."""

    def __init__(
        self,
        batch: Batch,
        started: Iterator[Started | Failure],
        on_step: OnStep | None,
        runner: Runner,
        max_waiting: int,
    ) -> None:
        self._batch, self._started, self._on_step, self._runner = batch, started, on_step, runner
        self._max_waiting = max_waiting
        self._waiting: deque[Item] = deque()
        self._tasks: dict[Item, Started] = {}
        self._ready: list[Rendering] = []
        self._failures: list[Failure] = []

    def results(self, each_step: bool = False) -> Iterator[list[Rendering] | Failure]:
        """Yield failures, and the results of each step that has any, or of each step."""
        while True:
            self._fill()
            if len(self._batch):
                steps = {item: total for item, (_, total) in self._batch.progress.items()} if self._on_step else {}
                outcomes = self._runner.step(self._batch)
                self._report(outcomes, steps)
                for outcome in outcomes:
                    self._take(outcome)
            elif not (self._ready or self._failures):
                return
            while self._failures:
                yield self._failures.pop()
            ready, self._ready = self._ready, []
            if ready or each_step:
                yield ready

    def _fill(self) -> None:
        """Put waiting items, then new tasks, into free slots."""
        for item in list(self._waiting):
            if self._batch.has_room(item):
                self._waiting.remove(item)
                self._add(item)
        while len(self._waiting) < self._max_waiting and self._batch.free > 0:
            started = next(self._started, None)
            if started is None:
                return
            if isinstance(started, Failure):
                self._failures.append(started)
            else:
                self._advance(started, None)

    def _take(self, outcome: Outcome) -> None:
        started = self._tasks.pop(outcome.item)
        if isinstance(outcome, Failed):
            started.task.close()
            error = FloatingPointError(outcome.reason)
            self._failures.append(Failure(started.request, started.number, error))
        else:
            self._advance(started, outcome.sample)

    def _advance(self, started: Started, sample: torch.Tensor | None) -> None:
        """Give a task the sample that it waits for, and put its next item into the batch."""
        try:
            item = next(started.task) if sample is None else started.task.send(sample)
        except StopIteration as stop:
            self._ready.append(Rendering(started.number, started.request, stop.value))
        except (ValueError, OSError) as error:  # a source cannot be decoded or read
            self._failures.append(Failure(started.request, started.number, error))
        else:
            self._tasks[item] = started
            if self._batch.has_room(item):
                self._add(item)
            else:
                self._waiting.append(item)

    def _add(self, item: Item) -> None:
        try:
            self._batch.add(item)
        except ValueError as error:
            started = self._tasks.pop(item)
            self._failures.append(Failure(started.request, started.number, error))

    def _report(self, outcomes: Sequence[Outcome], steps: Mapping[Item, int]) -> None:
        """Call `on_step` for each item in progress and for each finished item."""
        if self._on_step is None:
            return
        for item, (step, total) in self._batch.progress.items():
            self._on_step(self._step(item, step, total, partial(self._batch.preview, item)))
        for outcome in outcomes:
            if isinstance(outcome, Finished):
                total, sample = steps[outcome.item], outcome.sample
                self._on_step(self._step(outcome.item, total, total, partial(torch.clone, sample)))

    def _step(self, item: Item, step: int, steps: int, sample: Callable[[], torch.Tensor]) -> Step:
        started = self._tasks[item]

        def preview() -> Images:
            return self._runner.preview(sample(), item.request.seamless)

        return Step(started.number, started.request, step, steps, preview)


def without_failures(outcomes: Iterator[Loop | Failure]) -> Iterator[Loop]:
    """Yield the loops, then raise the error of the failures, if there are any."""
    failures = []
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            failures.append(outcome)
        else:
            yield outcome
    if len(failures) == 1:
        raise failures[0].error
    if failures:
        errors = [failure.error for failure in sorted(failures, key=lambda failure: failure.number)]
        kinds = (FloatingPointError, OSError)
        kind = next((kind for kind in kinds if all(isinstance(error, kind) for error in errors)), ValueError)
        raise kind("; ".join(map(str, errors)))
