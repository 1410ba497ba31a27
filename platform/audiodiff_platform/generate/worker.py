"""Worker of generate, which generates the loops of a shard and measures their audio."""

import io
import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from audiodiff_core.checkpoint import load_model
from audiodiff_core.loops import level_db, seam_score
from audiodiff_core.loops.tempo import measure_tempo
from audiodiff_core.pipeline import Failure, Loop, LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest, SamplingParameters, SeededRequest
from audiodiff_platform.generate.options import GenerateOptions
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
        self.digest = model.digest
        self.pipeline = LoopPipeline.of(model, self.profile)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Generate a shard of loops, and write its audio files and its part of the manifest.

        The loops are generated in batches. If a batch fails or MAX_BATCH_DEATHS processes die, the loops are generated
        one by one. A loop that then fails or kills two processes has no audio file, and its manifest row states the
        reason.

        Args:
            shard: Number of the shard.
            attempts: Attempts at the shard so far.

        Returns:
            The record of the shard: numbers of rows and failures, digests and sizes in bytes of the files.
        """
        parameters = self.options.model_dump(include=set(SamplingParameters.model_fields))
        requests = [GenerateRequest(seed=seed, **parameters) for seed in self.options.shard_seeds()[shard]]
        rows = None if len(attempts.deaths) >= MAX_BATCH_DEATHS else self._generate_batched(requests, attempts)
        if rows is None:
            rows = self._generate_singly(requests, attempts)
        attempts.require_ownership()
        buffer = io.BytesIO()
        pq.write_table(
            pa.Table.from_pylist(sorted(rows, key=lambda row: row["seed"]), MANIFEST_SCHEMA), buffer, compression="zstd"
        )
        manifest = f"manifest/{shard:06d}.parquet"
        self.output.write(manifest, buffer.getvalue())
        with_audio = [row for row in rows if row["path"]]
        parts = {manifest: commits.sha256(buffer.getvalue()), **{row["path"]: row["sha256"] for row in with_audio}}
        sizes = {manifest: len(buffer.getvalue()), **{row["path"]: row["bytes"] for row in with_audio}}
        return {"rows": len(rows), "failed": len(rows) - len(with_audio), "parts": parts, "sizes": sizes}

    def _generate_batched(self, requests: Sequence[GenerateRequest], attempts: Attempts) -> list[dict[str, Any]] | None:
        """Generate loops in batches and return their manifest rows, or None if a loop failed."""
        rows = []
        try:
            for outcome in self.pipeline.outcomes(requests):
                rows.append(self._row(outcome))
                attempts.require_running()
        except (*LOOP_FAILURES, RuntimeError) as error:
            logging.getLogger(__name__).warning("batch failed, generating its loops one by one: %s", error)
            return None
        return rows

    def _generate_singly(self, requests: Sequence[GenerateRequest], attempts: Attempts) -> list[dict[str, Any]]:
        """Generate loops one by one and return their manifest rows. Rows of failed loops state the reason."""
        rows = []
        for request in requests:
            if attempts.gives_up(str(request.seed)):
                rows.append(self._failure_row(request, attempts.reason))
                continue
            attempts.start(str(request.seed))
            try:
                (outcome,) = self.pipeline.outcomes([request])
                rows.append(self._row(outcome))
            except LOOP_FAILURES as error:
                rows.append(self._failure_row(request, _reason(error)))
        return rows

    def _row(self, outcome: Loop | Failure) -> dict[str, Any]:
        """Write the audio file of a loop. Return the manifest row of a loop or of a failure."""
        if isinstance(outcome, Failure):
            return self._failure_row(outcome.request, _reason(outcome.error))
        return self._write_loop(outcome)

    def _write_loop(self, loop: Loop) -> dict[str, Any]:
        """Write the audio file of a loop and return its manifest row."""
        mel = self.pipeline.mel
        content = loop.file(mel.sample_rate, self.options.format)
        path = f"audio/{loop.request.seed:010d}.{self.options.format}"
        self.output.write(path, content)
        tempo = measure_tempo(loop.audio, mel.sample_rate)
        return {
            **self._provenance(loop.request),
            "path": path,
            "sha256": commits.sha256(content),
            "bytes": len(content),
            "duration_s": len(loop.audio) / mel.sample_rate,
            "tempo_bpm": tempo.bpm,
            "tempo_confidence": tempo.confidence,
            "seam_score": seam_score(loop.audio, mel.sample_rate),
            "level_db": level_db(loop.audio),
            "reason": None,
        }

    def _failure_row(self, request: SeededRequest, reason: str) -> dict[str, Any]:
        measurements = dict.fromkeys(
            ("path", "sha256", "duration_s", "tempo_bpm", "tempo_confidence", "seam_score", "level_db")
        )
        return {**self._provenance(request), **measurements, "reason": reason}

    def _provenance(self, request: SeededRequest) -> dict[str, Any]:
        """Return the manifest columns for the request, the execution profile and the model."""
        return {
            **request.model_dump(),
            "id": f"{request.seed:010d}",
            **self.profile.record(),
            "model_digest": self.digest,
            "mel_digest": self.pipeline.mel.digest,
        }


def shard_counts(record: Record) -> Counts:
    """Return the numbers of audio files and failures in the record of a shard."""
    return {"files": record["rows"] - record["failed"], "failed": record["failed"]}


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
