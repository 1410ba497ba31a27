"""Worker of generate, which generates the loops of shards."""

import logging
import time
from collections.abc import Iterable, Iterator
from itertools import chain, count
from typing import ClassVar

from audiodiff_core.checkpoint import load_model
from audiodiff_core.pipeline import Failure, Loop, LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_core.sampling.requests import Request
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.generate.decoded_files import DecodedFiles
from audiodiff_platform.generate.finishing import (
    LOOP_FAILURES,
    MAX_BATCH_DEATHS,
    OUT_OF_MEMORY,
    OpenShard,
    Sink,
    WritingThread,
)
from audiodiff_platform.generate.handover import Collector, packed
from audiodiff_platform.generate.loop_files import LoopFiles, reason_of
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.request_plan import PlannedLoop, shard_loops
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.outcomes import Handover
from audiodiff_platform.work.shard_work import Commit, Counts, Record

BATCHES_QUEUED = 2
"""Largest number of batches of loops that wait for their files. Sampling then waits."""


class GenerateWorker:
    """Worker that loads a model and generates shards of loops.

    All loops share the slots of one batch. The loops of the next shard take the slots that the last loops of a shard
    leave, so that the batch stays full.

    Args:
        options: Options of the job.
        model_digest: Digest of the model at the start of the job.

    Raises:
        ValueError: The model has changed since the start of the job.
    """

    files_class: ClassVar[type[LoopFiles]] = LoopFiles

    def __init__(self, options: GenerateOptions, model_digest: str) -> None:
        self.options = options
        self.profile = ExecutionProfile.here(options.precision, options.batch_size, options.compiled)
        self.profile.prepare_process()
        model = load_model(options.model)
        if model.digest != model_digest:
            raise ValueError(
                f"model {options.model} has changed since the job began (digest {model.digest}, was {model_digest}): "
                "restore it and run the command again"
            )
        self.pipeline = LoopPipeline.of(model, self.profile)
        self.loop_files = self.files_class.of(options, model.mel, self.profile, model.digest)
        self.output = self.loop_files.output
        self.files = DecodedFiles()
        self._lap_began: float | None = None
        self._lap_sampling_s = 0.0

    def shards(self, pending: Iterable[Attempts], commit: Commit) -> Iterator[tuple[Attempts, Record | Exception]]:
        """Generate shards of loops, and write their audio files and their parts of the manifest.

        If a batch fails, the shards in progress are generated one after another. If the batch of a single shard fails,
        or MAX_BATCH_DEATHS processes died at the shard, its loops are generated one by one. A loop that then fails or
        kills two processes has no audio file, and its manifest row states the reason. A lack of memory
        is such a failure only if the memory suffices for a default loop: each call has the shape of a whole batch.

        Args:
            pending: Attempts at each shard so far.
            commit: Commits the record of a shard: numbers of rows and failures, seconds of audio, digests and sizes in
                bytes of the files, and the seconds that passed since the record before, in all and in the sampler.

        Yields:
            Each shard with its record or the error that ended it.
        """
        with WritingThread(self.loop_files, commit, self._lap) as thread:
            for shard in self._sampled(pending, thread):
                yield shard.attempts, shard.result

    def handovers(self, pending: Iterable[Attempts]) -> Iterator[tuple[Attempts, Handover | Exception]]:
        """Generate shards of loops, and hand them over instead of writing their files. Failures are those of `shards`.

        Args:
            pending: Attempts at each shard so far.

        Yields:
            Each shard with its loops for a `GenerateFinisher`, or with the error that ended it.
        """
        for shard in self._sampled(pending, Collector(self.loop_files, self._lap)):
            yield shard.attempts, packed(shard, self.loop_files) if shard.error is None else shard.error

    def _sampled(self, pending: Iterable[Attempts], sink: Sink) -> Iterator[OpenShard]:
        """Generate the loops of shards for `sink`, and yield each shard that is finished."""
        if self._lap_began is None:
            self._lap_began = time.monotonic()
        opened = map(self._opened, pending)
        for first in opened:
            if len(first.attempts.deaths) >= MAX_BATCH_DEATHS:
                yield from self._singly(first, sink)
            else:
                yield from self._batched(chain([first], opened), sink)

    def _opened(self, attempts: Attempts) -> OpenShard:
        """Read the loops of a shard from the plan. Bad rows are failures from the start."""
        shard = OpenShard(attempts, [], digests=self.files.digests)
        try:
            shard.loops = shard_loops(self.output, attempts.shard)
        except Exception as error:
            shard.error = error
        shard.rows = {
            place: self.loop_files.failure(loop, loop.reason)
            for place, loop in enumerate(shard.loops)
            if loop.reason is not None
        }
        return shard

    def _batched(self, shards: Iterator[OpenShard], sink: Sink) -> Iterator[OpenShard]:
        """Generate the missing loops of shards in one batch, and yield each shard that is finished."""
        places: dict[int, tuple[OpenShard, int]] = {}
        in_progress: list[OpenShard] = []
        queued = BATCHES_QUEUED * self.profile.batch_size

        def finished(queued: int) -> Iterator[OpenShard]:
            for shard in sink.finished(queued):
                in_progress.remove(shard)
                yield shard

        try:
            for outcome in self.pipeline.outcomes(_requests(shards, in_progress, places, sink), files=self.files):
                shard, place = places.pop(outcome.number)
                sink.write(shard, place, outcome)
                _count_sampled(shard, 1, sink)
                shard.attempts.require_running()
                yield from finished(queued)
        except (*LOOP_FAILURES, RuntimeError) as error:
            logging.getLogger(__name__).warning("batch failed, generating its loops in smaller batches: %s", error)
        yield from finished(0)
        alone = len(in_progress) == 1
        for shard in in_progress:
            yield from self._singly(shard, sink) if alone else self._batched(iter([shard]), sink)

    def _singly(self, shard: OpenShard, sink: Sink) -> Iterator[OpenShard]:
        """Generate the missing loops of a shard one by one. Rows of failed loops state the reason."""
        for place, loop in shard.missing.items():
            if shard.error is not None:
                break
            if shard.attempts.gives_up(loop.id):
                shard.rows[place] = self.loop_files.failure(loop, shard.attempts.reason)
                continue
            try:
                shard.attempts.start(loop.id)
                outcome = self._alone(loop)
            except LOOP_FAILURES as error:
                shard.rows[place] = self.loop_files.failure(loop, reason_of(error))
            except Exception as error:
                shard.error = error
            else:
                sink.write(shard, place, outcome)
                yield from sink.finished()
        sink.finish(shard)
        yield from sink.finished()

    def _alone(self, loop: PlannedLoop) -> Loop | Failure:
        """Generate a loop alone. After a lack of memory, generate a default loop too, to find out whose fault it is.

        Raises:
            JobError: The memory does not suffice for a default loop either.
            Exception: Any other error of the loop.
        """
        try:
            (outcome,) = self.pipeline.outcomes(iter([loop.with_values]), files=self.files)
        except OUT_OF_MEMORY as error:
            failure = error.with_traceback(None)  # the frames of the traceback hold the memory of the batch
        else:
            return outcome
        try:
            list(self.pipeline.outcomes(iter([GenerateRequest(steps=1)])))
        except OUT_OF_MEMORY:
            raise JobError(
                f"batch_size {self.profile.batch_size}: the memory of {self.profile.device} does not suffice for a "
                f"batch, even of a single loop of the default width ({reason_of(failure)}): free memory there, or use "
                "a smaller batch_size and another output_dir"
            ) from failure
        raise failure

    def _lap(self) -> Record:
        """Return the seconds since the last call, and the seconds of the sampler in this time."""
        assert self._lap_began is not None, "a shard is in progress"
        now, sampling_s = time.monotonic(), self.pipeline.sampling_s
        lap = {"seconds": now - self._lap_began, "sampling_s": sampling_s - self._lap_sampling_s}
        self._lap_began, self._lap_sampling_s = now, sampling_s
        return lap


def _requests(
    shards: Iterator[OpenShard],
    in_progress: list[OpenShard],
    places: dict[int, tuple[OpenShard, int]],
    sink: Sink,
) -> Iterator[Request]:
    """Yield the requests of the missing loops of shards. Add each shard and the place of each loop to the arguments."""
    numbers = count()
    for shard in shards:
        in_progress.append(shard)
        missing = list(shard.missing.items())
        shard.unsampled = len(missing)
        requested = 0
        for place, loop in missing:
            if shard.error is not None:
                break
            places[next(numbers)] = shard, place
            requested += 1
            yield loop.with_values
        if requested < len(missing) or not missing:
            _count_sampled(shard, len(missing) - requested, sink)


def _count_sampled(shard: OpenShard, loops: int, sink: Sink) -> None:
    """Count loops that are sampled, or that an error has made needless. Finish their shard after the last."""
    shard.unsampled -= loops
    if not shard.unsampled:
        sink.finish(shard)


def shard_counts(record: Record) -> Counts:
    """Return the counts of a shard: audio files, failures, seconds of audio, and the times of its record."""
    counts = {name: record[name] for name in ("failed", "audio_s", "seconds", "sampling_s")}
    return {"files": record["rows"] - record["failed"], **counts}
