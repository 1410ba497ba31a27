"""Tasks of requests, which share the slots of one batch."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from audiodiff_core.mel import Images
from audiodiff_core.pipeline.loop import Failure
from audiodiff_core.pipeline.rendering import Renderer, Rendering
from audiodiff_core.pipeline.tasks import Task
from audiodiff_core.sampling import Batch, Failed, Finished, Item, Outcome
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


class TaskBatch:
    """Tasks in progress in one batch.

    Args:
        batch: The batch.
        renderer: The renderer of previews.
        max_waiting: Number of tasks that may wait for a slot of their width while slots of other widths are free.
        on_sampled: Called with the seconds that each step of the batch took.
    """

    def __init__(
        self,
        batch: Batch,
        renderer: Renderer,
        max_waiting: int = 1,
        on_sampled: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._batch, self._renderer, self._max_waiting, self._on_sampled = batch, renderer, max_waiting, on_sampled
        self._waiting: deque[Item] = deque()
        self._tasks: dict[Item, Started] = {}
        self._ready: list[Rendering] = []
        self._failures: list[Failure] = []

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def has_room(self) -> bool:
        """True if a slot is free, and fewer than `max_waiting` tasks in progress wait for a slot."""
        return len(self._waiting) < self._max_waiting and self._batch.free > 0

    def add(self, started: Started) -> None:
        """Start a task, which joins the batch at the next step. A failure is among the next results."""
        self._advance(started, None)

    def cancel(self, started: Started) -> bool:
        """Remove a task before the next step.

        Returns:
            True if the task was in progress.
        """
        item = next((item for item, other in self._tasks.items() if other is started), None)
        if item is None:
            return False
        del self._tasks[item]
        if not self._batch.cancel(item):
            self._waiting.remove(item)
        started.task.close()
        self._place_waiting()
        return True

    def step(self, on_step: OnStep | None = None) -> None:
        """Move every task to its next noise level.

        Args:
            on_step: Called for each loop in progress.
        """
        steps = {item: total for item, (_, total) in self._batch.progress.items()} if on_step else {}
        began = time.perf_counter()
        outcomes = self._batch.step()
        self._on_sampled(time.perf_counter() - began)
        if on_step is not None:
            self._report(on_step, outcomes, steps)
        for outcome in outcomes:
            self._take(outcome)
        self._place_waiting()

    def results(self) -> tuple[list[Rendering], list[Failure]]:
        """Return the results and the failures since the last call."""
        results = self._ready, self._failures
        self._ready, self._failures = [], []
        return results

    def _place_waiting(self) -> None:
        for item in list(self._waiting):
            if self._batch.has_room(item):
                self._waiting.remove(item)
                self._place(item)

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
                self._place(item)
            else:
                self._waiting.append(item)

    def _place(self, item: Item) -> None:
        try:
            self._batch.add(item)
        except ValueError as error:
            started = self._tasks.pop(item)
            self._failures.append(Failure(started.request, started.number, error))

    def _report(self, on_step: OnStep, outcomes: Sequence[Outcome], steps: Mapping[Item, int]) -> None:
        """Call `on_step` for each item in progress and for each finished item."""
        for item, (step, total) in self._batch.progress.items():
            on_step(self._step(item, step, total, partial(self._batch.preview, item)))
        for outcome in outcomes:
            if isinstance(outcome, Finished):
                total, sample = steps[outcome.item], outcome.sample
                on_step(self._step(outcome.item, total, total, partial(torch.clone, sample)))

    def _step(self, item: Item, step: int, steps: int, sample: Callable[[], torch.Tensor]) -> Step:
        started = self._tasks[item]

        def preview() -> Images:
            return self._renderer.preview(sample(), item.request.seamless)

        return Step(started.number, started.request, step, steps, preview)
