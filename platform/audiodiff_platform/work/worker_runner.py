"""The worker of a process and its attempts, which the runners of all stages share; the runner of the second stage."""

import logging
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from audiodiff_platform.entry.errors import JobError, LeaseLostError, one_line
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.scratch import remove_abandoned
from audiodiff_platform.work.attempts import Attempts, CommittedError
from audiodiff_platform.work.outcomes import Handover, Outcome
from audiodiff_platform.work.shard_work import Record, ShardWork

W = TypeVar("W")


class WorkerRunner(Generic[W]):
    """A worker in a process of its own.

    Args:
        work: The job.
        make: Class of the worker.
        stage: Suffix of the names of the attempt records of the stage.
    """

    def __init__(self, work: ShardWork, make: Callable[..., W], stage: str = "") -> None:
        self.work, self._make, self._stage = work, make, stage
        self.output = None if work.output is None else Folder(work.output)
        for parent in {Path(tempfile.gettempdir()), *([self.output.scratch_parent] if self.output else [])}:
            remove_abandoned(parent)
        self._process = uuid.uuid4().hex
        self._made: W | None = None
        self._failure: Exception | None = None
        try:
            self._made = make(*work.arguments)
        except Exception as failure:  # the first shard raises it: Ray Data would hide an error of the constructor
            self._failure = failure

    @property
    def worker(self) -> W:
        """The worker. If storage failed in its constructor, the worker is made now.

        Raises:
            Exception: The error of the constructor.
        """
        if self._made is None:
            if self._failure is not None and not isinstance(self._failure, OSError):
                raise self._failure
            self._made = self._make(*self.work.arguments)
        return self._made

    def opened(self, shard: int) -> Attempts | Outcome:
        """Return the attempts at a shard, or the outcome of a shard that is not to be run."""
        try:
            if self.output is not None and (committed := commits.committed_one(self.output, shard)) is not None:
                return Outcome(shard, self.work.counts(committed))
            token, _ = self.work.lease or (None, None)
            attempts = Attempts(self.work.attempts_folder(), shard, self._process, token, self._stage)
        except Exception as error:
            return failed(shard, error)
        if attempts.exhausted:
            return Outcome(shard, {}, f"shard {shard} killed {len(attempts.deaths)} worker processes", "lost")
        return attempts

    def ended(self, attempts: Attempts, result: Record | Handover | Exception) -> Outcome:
        """Clear the mark of a shard that has ended, and return its outcome."""
        shard = attempts.shard
        try:
            if isinstance(result, CommittedError):
                assert self.output is not None
                committed = commits.committed_one(self.output, shard)
                assert committed is not None, "no commit is withdrawn while workers run"
                result = committed
            attempts.stop()
        except OSError as error:
            return failed(shard, result if isinstance(result, Exception) else error)
        match result:
            case Exception():
                return failed(shard, result)
            case Handover():
                return Outcome(shard, {}, kind="handed over", handover=result)
            case record:
                return Outcome(shard, self.work.counts(record))

    def commit(self, attempts: Attempts, record: Record) -> None:
        """Commit the record of a shard."""
        if self.output is not None:
            token, generation = self.work.lease or (None, None)
            record = record if generation is None else {**record, "generation": generation}
            commits.commit(self.output, attempts.shard, record, token)


class FinishRunner(WorkerRunner[Any]):
    """The callable class of Ray Data's `map` of the second stage. Each actor holds one instance, with one finisher.

    If its process dies, Ray gives the shard, which is still in the object store, to the next process. If the node dies,
    Ray runs the row of the first stage again too.
    """

    def __init__(self, work: ShardWork) -> None:
        assert work.finisher is not None, "the work has two stages"
        super().__init__(work, work.finisher, "-finish")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Finish the shard of a row, and return the row of its outcome. Other outcomes pass through."""
        outcome = Outcome.of(row)
        return (outcome if outcome.handover is None else self._finished(outcome.shard, outcome.handover)).row()

    def _finished(self, shard: int, handover: Handover) -> Outcome:
        attempts = self.opened(shard)
        if isinstance(attempts, Outcome):
            return attempts
        result: Record | Exception
        try:
            attempts.start()
            record = self.worker.finish(handover, attempts)
            self.commit(attempts, record)
            result = record
        except Exception as error:
            result = error
        return self.ended(attempts, result)


def failed(shard: int, error: Exception) -> Outcome:
    """Return the outcome of a shard that an error has ended."""
    if isinstance(error, OSError):
        return Outcome(shard, {}, one_line(str(error)), "storage")
    if not isinstance(error, ValueError | JobError | LeaseLostError):
        logging.getLogger(__name__).error("shard %d failed", shard, exc_info=error)
    return Outcome(shard, {}, f"{type(error).__name__}: {one_line(str(error))}", "error")
