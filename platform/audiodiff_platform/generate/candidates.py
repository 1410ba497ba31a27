"""Candidates of the quality gate: a folder of generated and measured loops inside the output folder.

    OUT/_candidates/candidates.json     settings and their digest
    OUT/_candidates/_plan/*.parquet     the requests of each shard
    OUT/_candidates/measured/*.parquet  a row for each candidate (`MEASURED_SCHEMA`), kept for later decisions
    OUT/_candidates/audio/<id>.wav      a candidate that passes the checks of a single loop, until the job has succeeded
    OUT/_candidates/reference.parquet   features of the reference of the check `copy`

The audio files are no parts of the commit protocol: what is missing when it is delivered is generated again.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.pipeline import Failure, Loop
from audiodiff_platform.generate.decisions import BEST, Candidate
from audiodiff_platform.generate.gate import Gate
from audiodiff_platform.generate.gate_options import GateOptions
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.reference import Reference
from audiodiff_platform.generate.request_plan import PlannedLoop
from audiodiff_platform.generate.worker import GenerateWorker
from audiodiff_platform.mel_data.loops_folder import MANIFEST_SCHEMA
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Record

CANDIDATES, CANDIDATES_SETTINGS = "_candidates", "candidates.json"
MEASURED_SCHEMA = MANIFEST_SCHEMA.append(pa.field("features", pa.list_(pa.float32()))).remove_metadata()
"""The columns of the manifest, and the features of the candidate; null if no check compares loops."""


def candidates_uri(output_dir: str) -> str:
    """Return the URI of the candidates of an output folder."""
    return f"{output_dir.rstrip('/')}/{CANDIDATES}"


class CandidateWorker(GenerateWorker):
    """Worker that generates and measures shards of candidates.

    Args:
        options: Options of the job.
        model_digest: Digest of the model at the start of the job.
    """

    def __init__(self, options: GenerateOptions, model_digest: str) -> None:
        folder = candidates_uri(options.output_dir)
        super().__init__(options.model_copy(update={"output_dir": folder}), model_digest)
        reference = Reference.stored(self.output) if "copy" in options.reject else None
        self.gate = Gate(options, self.loop_files.mel.sample_rate, reference)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Generate a shard of candidates, and write the audio files and the measured rows.

        Returns:
            The record of the shard: numbers of rows and of rows without audio, digest and size of the measured rows.
        """
        rows = self.rows(shard, attempts)
        attempts.require_ownership()
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, MEASURED_SCHEMA), buffer, compression="zstd")
        name, content = _part(shard), buffer.getvalue()
        self.output.write(name, content)
        return {
            "rows": len(rows),
            "failed": sum(row["path"] is None for row in rows),
            "parts": {name: commits.sha256(content)},
            "sizes": {name: len(content)},
        }

    def _row(self, loop: PlannedLoop, outcome: Loop | Failure) -> dict[str, Any]:
        """Measure a candidate, and write its audio file if it passes. Return its measured row."""
        if isinstance(outcome, Failure):
            return super()._row(loop, outcome)
        features = self.gate.features(outcome)
        reason = self.gate.reason(outcome, features)
        if reason is None:
            row = super()._row(loop, outcome)
        else:
            row = {**self.loop_files.failure(loop, reason), **self.gate.measurements(outcome)}
        return {**row, "features": features}


def measured_rows(folder: Folder, shard: int) -> list[dict[str, Any]]:
    """Return the manifest rows of the candidates of a shard."""
    table = pq.read_table(io.BytesIO(folder.read(_part(shard))), columns=MANIFEST_SCHEMA.names)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def measured_candidates(folder: Folder, shard: int, options: GateOptions) -> Iterator[Candidate]:
    """Yield the candidates of a shard for decisions."""
    column, sign = BEST[options.best_by]
    table = pq.read_table(io.BytesIO(folder.read(_part(shard))), columns=["id", "reason", "features", column])
    for row in table.to_pylist():
        features = None if row["features"] is None else np.array(row["features"], np.float64)
        measure = np.inf if row[column] is None else sign * row[column]
        yield Candidate(row["id"], row["reason"], features, measure)


def _part(shard: int) -> str:
    return f"measured/{shard:06d}.parquet"
