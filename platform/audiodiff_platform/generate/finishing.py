"""Files, manifests and commits of shards that are sampled, written on a thread while the next loops are sampled."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch

from audiodiff_core.pipeline import Failure, Loop
from audiodiff_platform.generate.checked_rows import sources_of
from audiodiff_platform.generate.loop_files import LoopFiles, reason_of
from audiodiff_platform.generate.request_plan import PlannedLoop
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.shard_work import Commit, Record
from audiodiff_platform.work.source_digests import record_digests

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
"""Errors caused by a lack of memory."""
LOOP_FAILURES = (ArithmeticError, *OUT_OF_MEMORY)
"""Errors caused by a single loop.

Other errors are caused by storage (OSError), the request (ValueError) or the machine.
"""
MAX_BATCH_DEATHS = 2
"""Number of process deaths in a shard after which its loops are generated, or finished, one by one."""


@dataclass(eq=False)
class OpenShard:
    """A shard in progress.

    Args:
        attempts: Attempts at the shard.
        loops: The loops of the shard.
        rows: Manifest rows so far, by the place of the loop in the shard.
        made: Loops that are kept until the shard is handed over, by place.
        unsampled: Number of loops that are not sampled yet.
        digests: SHA-256 of the files that the process has decoded, by name.
        record: The committed record, or the timings of a shard that is handed over; None before.
        error: The error that ended the shard, or None.
    """

    attempts: Attempts
    loops: list[PlannedLoop]
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    made: dict[int, Loop] = field(default_factory=dict)
    unsampled: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)
    record: Record | None = None
    error: Exception | None = None

    @property
    def result(self) -> Record | Exception:
        """The committed record, or the error that ended the shard."""
        result = self.record if self.error is None else self.error
        assert result is not None, "the shard is in progress"
        return result

    @property
    def missing(self) -> Mapping[int, PlannedLoop]:
        """The loops that have no manifest row and are not made, by place."""
        done = self.rows.keys() | self.made.keys()
        return {place: loop for place, loop in enumerate(self.loops) if place not in done}

    @property
    def source_digests(self) -> dict[str, str]:
        """SHA-256 of the sources of the loops that were decoded, by name."""
        requests = [loop.request for loop in self.loops if loop.request is not None]
        names = {name for request in requests for name in sources_of(request)}
        return {name: digest for name in sorted(names) if (digest := self.digests.get(name)) is not None}


@dataclass(frozen=True)
class ShardFiles:
    """Writer of the files of shards.

    Args:
        files: Writer of the files of loops.
    """

    files: LoopFiles

    def row(self, loop: PlannedLoop, outcome: Loop | Failure) -> dict[str, Any]:
        """Write the files of a loop, and return its manifest row or that of its failure."""
        try:
            return self.files.row(loop, outcome)
        except LOOP_FAILURES as error:
            return self.files.failure(loop, reason_of(error))

    def record(self, shard: OpenShard) -> Record:
        """Write the manifest of a shard whose rows are complete, and its digests of sources. Return its record."""
        shard.attempts.require_ownership()
        number, output = shard.attempts.shard, self.files.output
        record = self.files.record(number, [shard.rows[place] for place in range(len(shard.loops))])
        return {**record, **record_digests(output, number, digests)} if (digests := shard.source_digests) else record


class Sink(Protocol):
    """A receiver of sampled loops."""

    def write(self, shard: OpenShard, place: int, outcome: Loop | Failure) -> None:
        """Take a loop of a shard, or its failure."""

    def finish(self, shard: OpenShard) -> None:
        """Finish a shard whose loops are all taken, or that an error has ended."""

    def finished(self, queued: int = 0) -> Iterator[OpenShard]:
        """Yield the shards that are finished or failed. Wait until at most `queued` calls are in the queue."""


class WritingThread:
    """Thread that writes the files of loops and commits shards, in the order of the calls.

    An error ends the shard that it concerns.

    Args:
        files: Writer of the files of loops and shards.
        commit: Function that commits the record of a shard.
        laps: Function that returns the timings of the worker since its last call, as values of the record.
    """

    def __init__(self, files: LoopFiles, commit: Commit, laps: Callable[[], Record]) -> None:
        self._files, self._commit, self._laps = ShardFiles(files), commit, laps
        self._thread = ThreadPoolExecutor(1)
        self._tasks: deque[Future[OpenShard | None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def write(self, shard: OpenShard, place: int, outcome: Loop | Failure) -> None:
        """Write the audio file of a loop, and take its manifest row."""
        self._tasks.append(self._thread.submit(self._write, shard, place, outcome))

    def finish(self, shard: OpenShard) -> None:
        """Write the manifest of a shard and commit the shard, unless an error has ended it."""
        self._tasks.append(self._thread.submit(self._finish, shard))

    def finished(self, queued: int = 0) -> Iterator[OpenShard]:
        """Yield the shards that are committed or failed. Wait until at most `queued` calls are in the queue."""
        while self._tasks and (self._tasks[0].done() or len(self._tasks) > queued):
            if (shard := self._tasks.popleft().result()) is not None:
                yield shard

    def _write(self, shard: OpenShard, place: int, outcome: Loop | Failure) -> None:
        if shard.error is None:
            try:
                shard.rows[place] = self._files.row(shard.loops[place], outcome)
            except Exception as error:
                shard.error = error

    def _finish(self, shard: OpenShard) -> OpenShard:
        if shard.error is None:
            try:
                record = {**self._files.record(shard), **self._laps()}
                self._commit(shard.attempts, record)
                shard.record = record
            except Exception as error:
                shard.error = error
        return shard
