"""Worker of generate: makes shards of loops with one loaded model."""

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
from audiodiff_core.pipeline import Loop
from audiodiff_core.sampling import (
    ExecutionProfile,
    GenerateRequest,
    SamplingParameters,
)
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.mel_data.loops_folder import MANIFEST_SCHEMA
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Counts, Record

DEATHS_OF_A_BATCH = 2
LOOP_FAILURES = (ArithmeticError, MemoryError, torch.OutOfMemoryError)
"""Errors of a loop, as opposed to those of storage (OSError), of the request (ValueError) and of the machine."""


class GenerateWorker:
    """A worker that makes shards of loops with one loaded model."""

    def __init__(self, options: GenerateOptions, model_digest: str) -> None:
        self.options = options
        self.output = Folder(options.output_dir)
        self.profile = ExecutionProfile.here(options.precision, options.batch_size, options.compiled)
        self.profile.prepare_process()
        model = load_model(options.model)
        if model.digest != model_digest:
            raise ValueError(
                f"model {options.model} has changed since the job began: digest {model.digest}, it was {model_digest}"
            )
        self.digest = model.digest
        self.pipeline = model.pipeline(self.profile)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Write the audio files of a shard and its part of the manifest.

        The loops are made in batches. After two deaths of a process, or an error in a batch, the loops are made one by
        one: a loop that fails alone, or that ends two processes alone, gets a row with the reason.
        """
        parameters = self.options.model_dump(include=set(SamplingParameters.model_fields))
        requests = [GenerateRequest(seed=seed, **parameters) for seed in self.options.shard_seeds()[shard]]
        rows = None if len(attempts.deaths) >= DEATHS_OF_A_BATCH else self._batched(requests, attempts)
        if rows is None:
            rows = self._one_by_one(requests, attempts)
        attempts.require_ownership()
        buffer = io.BytesIO()
        pq.write_table(
            pa.Table.from_pylist(sorted(rows, key=lambda row: row["seed"]), MANIFEST_SCHEMA), buffer, compression="zstd"
        )
        manifest = f"manifest/{shard:06d}.parquet"
        self.output.write(manifest, buffer.getvalue())
        made = [row for row in rows if row["path"]]
        parts = {manifest: commits.sha256(buffer.getvalue()), **{row["path"]: row["sha256"] for row in made}}
        sizes = {manifest: len(buffer.getvalue()), **{row["path"]: row["bytes"] for row in made}}
        return {"rows": len(rows), "failed": len(rows) - len(made), "parts": parts, "sizes": sizes}

    def _batched(self, requests: Sequence[GenerateRequest], attempts: Attempts) -> list[dict[str, Any]] | None:
        """Make loops in batches -> their rows of the manifest, or None if a loop failed and took its batch along."""
        rows = []
        try:
            for loop in self.pipeline.generate(requests):
                rows.append(self._row(loop))
                attempts.require_running()
        except (*LOOP_FAILURES, RuntimeError) as error:
            logging.getLogger(__name__).warning("a batch failed, its loops are made one by one: %s", error)
            return None
        return rows

    def _one_by_one(self, requests: Sequence[GenerateRequest], attempts: Attempts) -> list[dict[str, Any]]:
        """Make each loop alone -> their rows of the manifest, with the reason where a loop cannot be made."""
        rows = []
        for request in requests:
            if attempts.gives_up(str(request.seed)):
                rows.append(self._failed(request, attempts.reason))
                continue
            attempts.start(str(request.seed))
            try:
                (loop,) = self.pipeline.generate([request])
                rows.append(self._row(loop))
            except LOOP_FAILURES as error:
                rows.append(self._failed(request, f"{type(error).__name__}: {' '.join(str(error).split())}"))
        return rows

    def _row(self, loop: Loop) -> dict[str, Any]:
        """Write the file of a loop -> the row of the manifest."""
        mel = self.pipeline.mel
        content = loop.file(mel.sample_rate, self.options.format)
        path = f"audio/{loop.request.seed:010d}.{self.options.format}"
        self.output.write(path, content)
        tempo = measure_tempo(loop.audio, mel.sample_rate)
        return {
            **self._stated(loop.request),
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

    def _failed(self, request: GenerateRequest, reason: str) -> dict[str, Any]:
        measured = dict.fromkeys(
            ("path", "sha256", "duration_s", "tempo_bpm", "tempo_confidence", "seam_score", "level_db")
        )
        return {**self._stated(request), **measured, "reason": reason}

    def _stated(self, request: GenerateRequest) -> dict[str, Any]:
        """The columns of the manifest that say what was asked for, of which model, and how it was computed."""
        return {
            "id": f"{request.seed:010d}",
            **request.model_dump(),
            **self.profile.model_dump(),
            "threads": self.profile.threads,
            "model_digest": self.digest,
            "mel_digest": self.pipeline.mel.digest,
        }


def generated(record: Record) -> Counts:
    """Count the loops and failures of a shard."""
    return {"files": record["rows"] - record["failed"], "failed": record["failed"]}
