"""Candidates of the quality gate: a folder of generated and measured loops inside the output folder.

    OUT/_candidates/candidates.json     settings and their digest
    OUT/_candidates/_plan/*.parquet     the requests of each shard
    OUT/_candidates/measured/*.parquet  a row for each candidate (`MEASURED_SCHEMA`), kept for later decisions
    OUT/_candidates/audio/<id>.wav      a candidate that passes the checks of a single loop, until the job has succeeded
    OUT/_candidates/reference.parquet   features of the reference of the check `copy`

The audio files are no parts of the commit protocol: what is missing when it is delivered is generated again.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import Loop
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_platform.generate.decisions import BEST, Candidate
from audiodiff_platform.generate.gate import Gate
from audiodiff_platform.generate.gate_options import GateOptions
from audiodiff_platform.generate.handover import GenerateFinisher
from audiodiff_platform.generate.loop_files import LoopFiles
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.reference import Reference
from audiodiff_platform.generate.request_plan import PlannedLoop
from audiodiff_platform.generate.worker import GenerateWorker
from audiodiff_platform.mel_data.loops_folder import MANIFEST_SCHEMA
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work.shard_work import Record

CANDIDATES, CANDIDATES_SETTINGS = "_candidates", "candidates.json"
MEASURED_SCHEMA = MANIFEST_SCHEMA.append(pa.field("features", pa.list_(pa.float32()))).remove_metadata()
"""The columns of the manifest, and the features of the candidate; null if no check compares loops."""


def candidates_uri(output_dir: str) -> str:
    """Return the URI of the candidates of an output folder."""
    return f"{output_dir.rstrip('/')}/{CANDIDATES}"


@dataclass(frozen=True)
class CandidateFiles(LoopFiles):
    """Writer of the files of candidates that pass the checks of a single loop, which measures all candidates.

    Args:
        gate: The checks of a single loop.
    """

    gate: Gate

    @classmethod
    def of(cls, options: GenerateOptions, mel: MelConfig, profile: ExecutionProfile, model_digest: str) -> Self:
        """Return the writer of a job."""
        folder = Folder(candidates_uri(options.output_dir))
        reference = Reference.stored(folder) if "copy" in options.reject else None
        return cls(folder, mel, options, profile, model_digest, Gate(options, mel.sample_rate, reference))

    def written(self, loop: PlannedLoop, made: Loop) -> dict[str, Any]:
        """Measure a candidate, and write its files if it passes. Return its measured row."""
        features = self.gate.features(made)
        reason = self.gate.reason(made, features)
        if reason is None:
            row = super().written(loop, made)
        else:
            row = {**self.failure(loop, reason), **self.gate.measurements(made)}
        return {**row, "features": features}

    def record(self, shard: int, rows: Sequence[Mapping[str, Any]]) -> Record:
        """Write the measured rows of a shard.

        Returns:
            The record of the shard: numbers of candidates and failures, seconds of audio, digest and size of the
            measured rows.
        """
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, MEASURED_SCHEMA), buffer, compression="zstd")
        name, content = _part(shard), buffer.getvalue()
        self.output.write(name, content)
        measured = [row["duration_s"] for row in rows if row.get("duration_s") is not None]
        return {
            "rows": len(rows),
            "failed": len(rows) - len(measured),
            "audio_s": sum(measured),
            "parts": {name: commits.sha256(content)},
            "sizes": {name: len(content)},
        }


class CandidateWorker(GenerateWorker):
    """Worker that generates and measures shards of candidates. Its arguments are those of `GenerateWorker`."""

    files_class = CandidateFiles


class CandidateFinisher(GenerateFinisher):
    """Finisher of the shards of candidates, which measures them. Its arguments are those of `GenerateFinisher`."""

    files_class = CandidateFiles


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
