"""The part of the engine that runs in each worker process: it runs the shards of a row and commits their records."""

import json
import logging
import tempfile
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from audiodiff_platform.entry.errors import JobError, LeaseLostError, one_line
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.scratch import remove_abandoned
from audiodiff_platform.work.attempts import Attempts, CommittedError
from audiodiff_platform.work.retries import Outcome
from audiodiff_platform.work.shard_work import Commit, Record, ShardStreamWorker, ShardWork, ShardWorker


class ShardRunner:
    """The callable class of Ray Data's `flat_map`. Each actor holds one instance, with one worker."""

    def __init__(self, work: ShardWork) -> None:
        self.work = work
        self.output = None if work.output is None else Folder(work.output)
        for parent in {Path(tempfile.gettempdir()), *([self.output.scratch_parent] if self.output else [])}:
            remove_abandoned(parent)
        self.process = uuid.uuid4().hex
        self.worker: ShardWorker | ShardStreamWorker | None = None
        self.failure: Exception | None = None
        try:
            self.worker = work.worker(*work.arguments)
        except Exception as failure:  # the first shard raises it: Ray Data would hide an error of the constructor
            self.failure = failure

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Run the shards of a row and yield their outcomes as JSON."""
        for outcome in self.outcomes([int(shard) for shard in row["shards"]]):
            yield {"outcome": json.dumps(asdict(outcome))}

    def outcomes(self, shards: Sequence[int]) -> Generator[Outcome, None, None]:
        """Run `shards` and yield the outcome of each shard, in this order.

        If a process dies, Ray runs its row again and skips as many outcomes as the driver has received. They must be
        those of the same shards.
        """
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
                match self._opened(shard):
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

    def _opened(self, shard: int) -> Attempts | Outcome:
        """Return the attempts at a shard, or the outcome of a shard that is not to be run."""
        try:
            if self.output is not None and (committed := commits.committed_one(self.output, shard)) is not None:
                return Outcome(shard, self.work.counts(committed))
            token, _ = self.work.lease or (None, None)
            attempts = Attempts(self.work.attempts_folder(), shard, self.process, token)
        except Exception as error:
            return _failed(shard, error)
        if attempts.exhausted:
            return Outcome(shard, {}, f"shard {shard} killed {len(attempts.deaths)} worker processes", "lost")
        return attempts

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
                    yield self._outcome(attempts, result)
        except Exception as error:
            for shard in in_progress:
                yield _failed(shard, error)
        finally:
            for attempts in in_progress.values():
                with suppress(OSError):  # the first error explains more than this error
                    attempts.stop()
        yield from _taken(settled)

    def _results(self, started: Iterator[Attempts]) -> Generator[tuple[Attempts, Record | Exception], None, None]:
        """Run the shards on the worker. Yield each with its committed record or its error."""
        if self.worker is None:
            if self.failure is not None and not isinstance(self.failure, OSError):
                raise self.failure
            self.worker = self.work.worker(*self.work.arguments)
        if isinstance(self.worker, ShardStreamWorker):
            yield from self.worker.shards(started, self._commit)
        else:
            yield from _one_by_one(self.worker, started, self._commit)

    def _outcome(self, attempts: Attempts, result: Record | Exception) -> Outcome:
        """Clear the mark of a shard that has ended, and return its outcome."""
        shard = attempts.shard
        try:
            if isinstance(result, CommittedError):
                assert self.output is not None
                committed = commits.committed_one(self.output, shard)
                assert committed is not None, "a commit is never withdrawn"
                result = committed
            attempts.stop()
        except OSError as error:
            return _failed(shard, result if isinstance(result, Exception) else error)
        return _failed(shard, result) if isinstance(result, Exception) else Outcome(shard, self.work.counts(result))

    def _commit(self, attempts: Attempts, record: Record) -> None:
        if self.output is not None:
            token, generation = self.work.lease or (None, None)
            record = record if generation is None else {**record, "generation": generation}
            commits.commit(self.output, attempts.shard, record, token)


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


def _failed(shard: int, error: Exception) -> Outcome:
    """Return the outcome of a shard that an error has ended."""
    if isinstance(error, OSError):
        return Outcome(shard, {}, one_line(str(error)), "storage")
    if not isinstance(error, ValueError | JobError | LeaseLostError):
        logging.getLogger(__name__).error("shard %d failed", shard, exc_info=error)
    return Outcome(shard, {}, f"{type(error).__name__}: {one_line(str(error))}", "error")


def _taken(outcomes: deque[Outcome]) -> Iterator[Outcome]:
    while outcomes:
        yield outcomes.popleft()
