"""The two stages of generate on GPUs: what sampling hands over, and the finisher that writes and commits it.

Sampling, decoding and the vocoder stay on the GPU of the worker, the last two on a thread beside the next steps: the
bytes of a loop depend on the kind of device, so that a vocoder on a CPU would give other bytes than the core and the
server do on the same GPU. The finisher measures the audio, encodes and writes the files, and commits the shard.

A shard is handed over as one row: its loops as float32 audio and uint8 images, and the reasons of the others. A loop of
256x256 with a hop length of 512 takes 0.6 MB, and a shard of four batches of 32 such loops 75 MB.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import numpy as np

from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import Failure, Loop
from audiodiff_core.pipeline.loop_file import Origin
from audiodiff_core.sampling import REQUEST, ExecutionProfile
from audiodiff_platform.generate.finishing import MAX_BATCH_DEATHS, OpenShard, ShardFiles
from audiodiff_platform.generate.loop_files import LoopFiles
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.request_plan import shard_loops
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.outcomes import Handover
from audiodiff_platform.work.shard_work import Record


class Collector:
    """Receiver that keeps the loops of shards until they are handed over. See `Sink`.

    Args:
        files: Writer of the manifest rows of failures.
        laps: Function that returns the timings of the worker since its last call, as values of the record.
    """

    def __init__(self, files: LoopFiles, laps: Callable[[], Record]) -> None:
        self._files, self._laps = files, laps
        self._finished: deque[OpenShard] = deque()

    def write(self, shard: OpenShard, place: int, outcome: Loop | Failure) -> None:
        """Keep a loop, or take the manifest row of its failure."""
        if isinstance(outcome, Loop):
            shard.made[place] = outcome
        elif shard.error is None:
            try:
                shard.rows[place] = self._files.row(shard.loops[place], outcome)
            except OSError as error:
                shard.error = error

    def finish(self, shard: OpenShard) -> None:
        """Take the timings of a shard, unless an error has ended it."""
        if shard.error is None:
            shard.record = self._laps()
        self._finished.append(shard)

    def finished(self, queued: int = 0) -> Iterator[OpenShard]:
        """Yield the shards that are finished or failed."""
        del queued
        while self._finished:
            yield self._finished.popleft()


def packed(shard: OpenShard, files: LoopFiles) -> Handover:
    """Return the handover of a finished shard.

    Args:
        shard: The shard, whose loops are in `made`, and the reasons of the others in `rows`.
        files: Writer of the files of the worker, which states what its loops were made with.
    """
    made = sorted(shard.made.items())
    facts = {
        "profile": files.profile.model_dump(),
        "mel": files.mel.model_dump(),
        "timings": shard.record,
        "reasons": [(place, row["reason"]) for place, row in sorted(shard.rows.items())],
        "loops": [(place, _facts(loop)) for place, loop in made],
        "digests": shard.source_digests,
    }
    content = b"".join(array.tobytes() for _, loop in made for array in (loop.audio, loop.image))
    return Handover(facts, np.frombuffer(content, np.uint8))


def unpacked(handover: Handover, profile: ExecutionProfile, model_digest: str) -> Iterator[tuple[int, Loop]]:
    """Yield the loops of a handover, each with its place in the shard. Each has a copy of its arrays.

    Args:
        handover: The handover.
        profile: The execution profile of the loops.
        model_digest: Digest of the model.
    """
    loops = handover.facts["loops"]
    sizes = [size for _, facts in loops for size in (4 * facts["samples"], int(np.prod(facts["shape"])))]
    parts = (handover.content[begin:end] for begin, end in pairwise(accumulate(sizes, initial=0)))
    for place, facts in loops:
        audio, image = next(parts).copy().view(np.float32), next(parts).reshape(facts["shape"]).copy()
        request, origin = REQUEST.validate_python(facts["request"]), Origin(model_digest, facts["encoding_digest"])
        yield place, Loop(request, image, audio, place, profile, origin)


class GenerateFinisher:
    """Finisher of the shards of generate.

    Args:
        options: Options of the job.
        model_digest: Digest of the model at the start of the job.
    """

    files_class: ClassVar[type[LoopFiles]] = LoopFiles

    def __init__(self, options: GenerateOptions, model_digest: str) -> None:
        ExecutionProfile(batch_size=1).prepare_process()
        self.options, self.model_digest = options, model_digest
        self._files: LoopFiles | None = None

    def finish(self, handover: Handover, attempts: Attempts) -> Record:
        """Write the audio files of a shard, and its part of the manifest.

        If MAX_BATCH_DEATHS finishers have died at the shard, each loop is marked while it is written. A loop that has
        killed two of them has no audio file, and its manifest row states the reason.

        Args:
            handover: The loops.
            attempts: Attempts to finish the shard so far.

        Returns:
            The record of the shard, with the timings of the worker that sampled it.
        """
        profile = ExecutionProfile.model_validate(handover.facts["profile"])
        files = self._files_of(MelConfig.model_validate(handover.facts["mel"]), profile)
        writer, loops = ShardFiles(files), shard_loops(files.output, attempts.shard)
        shard = OpenShard(attempts, loops, digests=handover.facts["digests"])
        for place, reason in handover.facts["reasons"]:
            shard.rows[place] = files.failure(shard.loops[place], reason)
        for place, made in unpacked(handover, profile, self.model_digest):
            loop = shard.loops[place]
            if attempts.gives_up(loop.id):
                shard.rows[place] = files.failure(loop, attempts.reason)
                continue
            if len(attempts.deaths) >= MAX_BATCH_DEATHS:
                attempts.start(loop.id)
            shard.rows[place] = writer.row(loop, made)
            attempts.require_running()
        return {**writer.record(shard), **handover.facts["timings"]}

    def _files_of(self, mel: MelConfig, profile: ExecutionProfile) -> LoopFiles:
        if self._files is None:
            self._files = self.files_class.of(self.options, mel, profile, self.model_digest)
        return replace(self._files, profile=profile)


def _facts(loop: Loop) -> dict[str, Any]:
    return {
        "request": loop.request.model_dump(mode="json", exclude_none=True),
        "samples": len(loop.audio),
        "shape": loop.image.shape,
        "encoding_digest": loop.origin.encoding_digest,
    }
