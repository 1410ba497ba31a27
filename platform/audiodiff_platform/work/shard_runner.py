"""The part of the engine that runs in each worker process: it runs the shards of a row and commits their records."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain
from typing import Any

from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.outcomes import Handover, Outcome
from audiodiff_platform.work.shard_work import (
    Commit,
    HandingWorker,
    Record,
    ShardStreamWorker,
    ShardWork,
    ShardWorker,
)
from audiodiff_platform.work.worker_runner import WorkerRunner, failed


class ShardRunner(WorkerRunner[ShardWorker | ShardStreamWorker]):
    """The callable class of Ray Data's `flat_map`. Each actor holds one instance, with one worker."""

    def __init__(self, work: ShardWork) -> None:
        super().__init__(work, work.worker)

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Run the shards of a row and yield the rows of their outcomes."""
        for outcome in self.outcomes(row["shards"]):
            yield outcome.row()

    def outcomes(self, shards: Sequence[int]) -> Generator[Outcome, None, None]:
        """Run `shards` and yield the outcome of each shard, in this order.

        If a process dies, Ray runs its row again and skips as many outcomes as the driver has received. They must be
        those of the same shards.
        """
        shards = [int(shard) for shard in shards]
        order, finished = deque(shards), dict[int, Outcome]()
        with closing(self._as_they_finish(shards)) as outcomes:
            for outcome in outcomes:
                finished[outcome.shard] = outcome
                while order and order[0] in finished:
                    yield finished.pop(order.popleft())

    def _as_they_finish(self, shards: Sequence[int]) -> Generator[Outcome, None, None]:
        """Run the shards. A shard at which a process died is run after the others and alone, to spare its neighbors."""
        settled = deque[Outcome]()
        suspects = list[Attempts]()

        def opened() -> Iterator[Attempts]:
            for shard in shards:
                match self.opened(shard):
                    case Outcome() as outcome:
                        settled.append(outcome)
                    case attempts if attempts.deaths:
                        suspects.append(attempts)
                    case attempts:
                        yield attempts

        pending = opened()
        for first in pending:
            yield from self._stream(chain([first], pending), settled)
        yield from settled
        for suspect in suspects:
            yield from self._stream([suspect], deque())

    def _stream(self, pending: Iterable[Attempts], settled: deque[Outcome]) -> Generator[Outcome, None, None]:
        """Run shards until none is pending or an error ends the shards in progress, and yield their outcomes.

        Args:
            pending: The attempts at the shards. At least one shard is pending.
            settled: Outcomes of other shards, which are taken from the queue and yielded.
        """
        in_progress = dict[int, Attempts]()

        def started() -> Iterator[Attempts]:
            for attempts in chain([first], remaining):
                in_progress[attempts.shard] = attempts
                attempts.start()
                yield attempts

        remaining = iter(pending)
        first = next(remaining)
        in_progress[first.shard] = first
        try:
            with closing(self._results(started())) as results:
                for attempts, result in results:
                    yield from _taken(settled)
                    del in_progress[attempts.shard]
                    yield self.ended(attempts, result)
        except Exception as error:
            for shard in in_progress:
                yield failed(shard, error)
        finally:
            for attempts in in_progress.values():
                with suppress(OSError):  # the first error explains more than this error
                    attempts.stop()
        yield from _taken(settled)

    def _results(
        self, started: Iterator[Attempts]
    ) -> Generator[tuple[Attempts, Record | Handover | Exception], None, None]:
        """Run the shards on the worker. Yield each with its committed record or its error."""
        if isinstance(self.worker, ShardStreamWorker):
            yield from self.worker.shards(started, self.commit)
        else:
            yield from _one_by_one(self.worker, started, self.commit)


class HandingRunner(ShardRunner):
    """The runner of the first of two stages.

    A shard that the driver has received but the second stage has not committed is run again if the process dies, and
    its outcome is skipped. Outcomes that wait for an earlier shard of their row are in the memory of the process.
    """

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Run the shards of a row and yield the rows of their outcomes, with what the finishers need."""
        for outcome in self.outcomes(row["shards"]):
            yield outcome.row_between_stages()

    def _results(
        self, started: Iterator[Attempts]
    ) -> Generator[tuple[Attempts, Record | Handover | Exception], None, None]:
        assert isinstance(self.worker, HandingWorker), "the work has two stages"
        yield from self.worker.handovers(started)


def _one_by_one(
    worker: ShardWorker, pending: Iterable[Attempts], commit: Commit
) -> Iterator[tuple[Attempts, Record | Exception]]:
    """Run each shard after the shard before it."""
    for attempts in pending:
        try:
            record = worker.shard(attempts.shard, attempts)
            commit(attempts, record)
        except Exception as error:
            yield attempts, error
        else:
            yield attempts, record


def _taken(outcomes: deque[Outcome]) -> Iterator[Outcome]:
    while outcomes:
        yield outcomes.popleft()
