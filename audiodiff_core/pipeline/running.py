"""Running of tasks in one batch, and rendering of their results as they finish.

On a GPU, results are rendered on a thread, while the next steps are sampled.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext

import torch
from tqdm import tqdm

from audiodiff_core.pipeline.loop import Failure, Loop
from audiodiff_core.pipeline.rendering import Renderer, Rendering
from audiodiff_core.pipeline.task_batch import OnStep, Started, TaskBatch
from audiodiff_core.sampling import ExecutionProfile, Sampler

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
        tasks = TaskBatch(batch, self._renderer, MAX_BATCHES_WAITING * profile.batch_size, self._sampled)
        results = _results(tasks, iter(started), on_step, each_step=self._beside)
        with ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=count, unit="loop", disable=not progress))
            finished: Iterator[Loop | Failure]
            if self._beside:
                finished = self._beside_sampling(results, profile, stack.enter_context(ThreadPoolExecutor(1)))
            else:
                finished = (
                    outcome
                    for ready in results
                    for outcome in ([ready] if isinstance(ready, Failure) else self._renderer.render(ready, profile))
                )
            for outcome in finished:
                bar.update()
                yield outcome

    def _sampled(self, seconds: float) -> None:
        self.sampling_s += seconds

    def _beside_sampling(
        self, results: Iterator[list[Rendering] | Failure], profile: ExecutionProfile, executor: ThreadPoolExecutor
    ) -> Iterator[Loop | Failure]:
        """Render on a thread, and yield what is ready after each step."""
        rendered: deque[Future[list[Loop | Failure]]] = deque()
        stream = torch.cuda.Stream(profile.device) if profile.on_gpu else None

        def render(ready: list[Rendering]) -> list[Loop | Failure]:
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                return list(self._renderer.render(ready, profile))

        try:
            for ready in results:
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


def _results(
    tasks: TaskBatch, started: Iterator[Started | Failure], on_step: OnStep | None, each_step: bool
) -> Iterator[list[Rendering] | Failure]:
    """Yield failures, and the results of each step that has any, or of each step."""
    while True:
        while tasks.has_room and (new := next(started, None)) is not None:
            if isinstance(new, Failure):
                yield new
            else:
                tasks.add(new)
        had_tasks = len(tasks) > 0
        if had_tasks:
            tasks.step(on_step)
        ready, failures = tasks.results()
        yield from failures
        if ready or (each_step and had_tasks):
            yield ready
        elif not (had_tasks or failures):
            return


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
