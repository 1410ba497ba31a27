"""Worker of generate, which generates the loops of a shard."""

import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from audiodiff_core.checkpoint import load_model
from audiodiff_core.pipeline import Failure, Loop, LoopPipeline
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_platform.generate.decoded_files import DecodedFiles
from audiodiff_platform.generate.loop_files import LoopFiles, reason_of
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.request_plan import PlannedLoop, shard_loops
from audiodiff_platform.mel_data.loops_folder import MANIFEST_SCHEMA
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Counts, Record

MAX_BATCH_DEATHS = 2
"""Number of process deaths in a shard after which its loops are generated one by one."""
LOOP_FAILURES = (ArithmeticError, MemoryError, torch.OutOfMemoryError)
"""Errors caused by a single loop.

Other errors are caused by storage (OSError), the request (ValueError) or the machine.
"""

Rows = dict[int, dict[str, Any]]
"""Manifest rows by the place of the loop in its shard."""


class GenerateWorker:
    """Worker that loads a model and generates shards of loops.

    Args:
        options: Options of the job.
        model_digest: Digest of the model at the start of the job.

    Raises:
        ValueError: The model has changed since the start of the job.
    """

    def __init__(self, options: GenerateOptions, model_digest: str) -> None:
        self.options = options
        self.output = Folder(options.output_dir)
        self.profile = ExecutionProfile.here(options.precision, options.batch_size, options.compiled)
        self.profile.prepare_process()
        model = load_model(options.model)
        if model.digest != model_digest:
            raise ValueError(
                f"model {options.model} has changed since the job began (digest {model.digest}, was {model_digest}): "
                "restore it and run the command again"
            )
        self.pipeline = LoopPipeline.of(model, self.profile)
        self.loop_files = LoopFiles(self.output, model.mel, options, self.profile, model.digest)
        self.files = DecodedFiles()

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Generate a shard of loops, and write its audio files and its part of the manifest.

        The loops are generated in batches. If a batch fails or MAX_BATCH_DEATHS processes die, the loops are generated
        one by one. A loop that then fails or kills two processes has no audio file, and its manifest row states the
        reason.

        Args:
            shard: Number of the shard.
            attempts: Attempts at the shard so far.

        Returns:
            The record of the shard: numbers of rows and failures, seconds of audio, digests and sizes in
            bytes of the files.
        """
        rows = self.rows(shard, attempts)
        attempts.require_ownership()
        return shard_record(self.output, shard, rows)

    def rows(self, shard: int, attempts: Attempts) -> list[dict[str, Any]]:
        """Generate a shard of loops and write their audio files. Return the manifest rows."""
        loops = shard_loops(self.output, shard)
        rows = self.made({place: loop for place, loop in enumerate(loops) if loop.request is not None}, attempts)
        rows |= {
            place: self.loop_files.failure(loop, loop.reason)
            for place, loop in enumerate(loops)
            if loop.reason is not None
        }
        return [rows[place] for place in range(len(loops))]

    def made(self, loops: Mapping[int, PlannedLoop], attempts: Attempts) -> Rows:
        """Generate loops and write their audio files. Return the manifest rows."""
        rows = None if len(attempts.deaths) >= MAX_BATCH_DEATHS else self._generate_batched(loops, attempts)
        return self._generate_singly(loops, attempts) if rows is None else rows

    def _generate_batched(self, loops: Mapping[int, PlannedLoop], attempts: Attempts) -> Rows | None:
        """Generate loops in batches and return their manifest rows, or None if a loop failed."""
        rows: Rows = {}
        try:
            requests = [loop.with_values for loop in loops.values()]
            places = list(loops)
            for outcome in self.pipeline.outcomes(requests, files=self.files):
                place = places[outcome.number]
                rows[place] = self._row(loops[place], outcome)
                attempts.require_running()
        except (*LOOP_FAILURES, RuntimeError) as error:
            logging.getLogger(__name__).warning("batch failed, generating its loops one by one: %s", error)
            return None
        return rows

    def _generate_singly(self, loops: Mapping[int, PlannedLoop], attempts: Attempts) -> Rows:
        """Generate loops one by one and return their manifest rows. Rows of failed loops state the reason."""
        rows: Rows = {}
        for place, loop in loops.items():
            if attempts.gives_up(loop.id):
                rows[place] = self.loop_files.failure(loop, attempts.reason)
                continue
            attempts.start(loop.id)
            try:
                (outcome,) = self.pipeline.outcomes([loop.with_values], files=self.files)
                rows[place] = self._row(loop, outcome)
            except LOOP_FAILURES as error:
                rows[place] = self.loop_files.failure(loop, reason_of(error))
        return rows

    def _row(self, loop: PlannedLoop, outcome: Loop | Failure) -> dict[str, Any]:
        """Write the audio file of a loop. Return the manifest row of a loop or of a failure."""
        if isinstance(outcome, Loop):
            return self.loop_files.written(loop, outcome)
        if isinstance(outcome.error, OSError):  # storage failed, so that the shard is tried again
            raise outcome.error
        return self.loop_files.failure(loop, reason_of(outcome.error))


def shard_record(output: Folder, shard: int, rows: Sequence[Mapping[str, Any]]) -> Record:
    """Write a part of the manifest, and return the record of its shard."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), buffer, compression="zstd")
    manifest = f"manifest/{shard:06d}.parquet"
    output.write(manifest, buffer.getvalue())
    with_audio = [row for row in rows if row["path"]]
    parts = {manifest: commits.sha256(buffer.getvalue()), **{row["path"]: row["sha256"] for row in with_audio}}
    sizes = {manifest: len(buffer.getvalue()), **{row["path"]: row["bytes"] for row in with_audio}}
    return {
        "rows": len(rows),
        "failed": len(rows) - len(with_audio),
        "audio_s": sum(row["duration_s"] for row in with_audio),
        "parts": parts,
        "sizes": sizes,
    }


def shard_counts(record: Record) -> Counts:
    """Return the numbers of audio files and failures in the record of a shard."""
    return {"files": record["rows"] - record["failed"], "failed": record["failed"]}
