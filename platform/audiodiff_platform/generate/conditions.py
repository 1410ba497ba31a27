"""Encodings of the conditions of a job: the embeddings of the audio (`like`) and texts (`prompt`) of its requests.

Each condition is embedded once, by the workers of the job. The plan of the output folder keeps the values. A later run
of the job takes them from the plan, unless size or version of an audio file have changed.

    OUT/_conditions/<digest>    plan, commits and embeddings of a run, until the job has ended
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from audiodiff_core.checkpoint import ModelRecord
from audiodiff_core.embeddings import Encoder
from audiodiff_core.pipeline.conditions import model_encoder, no_text_side
from audiodiff_core.sampling.conditions import Condition
from audiodiff_platform.cluster import encoder_source, require_shared, require_shared_files
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.generate.checked_rows import LoopRow, bad_row, require_good
from audiodiff_platform.generate.condition_worker import PLANNED_SCHEMA, ConditionWorker, condition_counts
from audiodiff_platform.generate.loop_rows import LoopRows
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.request_plan import RequestPlan
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.storage.scratch import scratch_folder
from audiodiff_platform.work import plan_files
from audiodiff_platform.work.engine import engine
from audiodiff_platform.work.plan import ShardSize
from audiodiff_platform.work.shard_work import ShardWork
from audiodiff_platform.work.sharded_job import ShardedJob

CONDITIONS, SETTINGS = "_conditions", "conditions.json"
SHARD_CONDITIONS = 64


class EncodingTable:
    """Encodings in a temporary file, so that their number is not limited by memory.

    Args:
        file: The file.
        dim: Number of values of an encoding.
    """

    def __init__(self, file: Path, dim: int) -> None:
        self._file, self._row_bytes = file.open("w+b"), dim * np.dtype(np.float32).itemsize
        self._rows: dict[Condition, int] = {}
        self.values = lru_cache(SHARD_CONDITIONS)(self._values)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __contains__(self, condition: Condition) -> bool:
        return condition in self._rows

    def add(self, condition: Condition, values: Iterable[float]) -> None:
        """Add the encoding of a condition."""
        row = self._rows.setdefault(condition, len(self._rows))
        self._file.seek(row * self._row_bytes)
        self._file.write(np.array(values, np.float32).tobytes())

    def _values(self, condition: Condition) -> list[float]:
        """Return the encoding of a condition."""
        self._file.seek(self._rows[condition] * self._row_bytes)
        values: list[float] = np.frombuffer(self._file.read(self._row_bytes), np.float32).tolist()
        return values


@dataclass(frozen=True)
class _Encoded:
    """Loops with the encodings of their conditions."""

    rows: Iterable[LoopRow]
    table: EncodingTable
    origins: Mapping[Condition, str]

    def __iter__(self) -> Iterator[LoopRow]:
        for row in self.rows:
            if row.condition is None:
                yield row
            else:
                yield replace(row, encoding=self.table.values(row.condition), origin=self.origins[row.condition])


@contextmanager
def with_encodings(
    options: GenerateOptions, loops: LoopRows, record: ModelRecord | None, dim: int | None, output: Folder
) -> Iterator[LoopRows]:
    """Yield the loops with the encodings of their conditions.

    Args:
        options: Options of the job.
        loops: The loops, all of which the model supports.
        record: The record of the model, or None.
        dim: Number of values of an encoding, or None for an unconditional model.
        output: The output folder, whose lease the caller holds.

    Raises:
        ValueError: The encoder is not that of the model, or conditions cannot be embedded, and `skip_bad` is not set.
    """
    if not loops.conditions:
        yield loops
        return
    assert dim is not None, "an unconditional model has no conditions"
    encoder: Encoder | None = None
    if record is not None and record.encoder is not None:
        digest = record.encoder.digest
    else:
        encoder = model_encoder(record, options.encoder, dim)
        digest = encoder.digest
        say(f"warning: the model does not record its encoder: {encoder.name} with digest {digest} is not checked")
    origins = {condition: f"{digest} {version}" for condition, version in loops.conditions.items()}
    with scratch_folder() as scratch, closing(EncodingTable(scratch / "encodings", dim)) as table:
        _add_planned(output, origins, table)
        reasons = _add_embedded(output, origins, table)
        if missing := [condition for condition in origins if condition not in table and condition not in reasons]:
            encoder = encoder or model_encoder(record, options.encoder, dim)
            if reason := no_text_side(encoder):
                reasons |= {condition: reason for condition in missing if condition.field == "prompt"}
            _embed(options, encoder, [(named, origins[named]) for named in missing if named not in reasons], output)
            reasons |= _add_embedded(output, origins, table)
        yield replace(loops, rows=_Encoded(_without_bad(options, loops, reasons), table, origins))


def _add_planned(output: Folder, origins: Mapping[Condition, str], table: EncodingTable) -> None:
    """Add the encodings of the loops that are planned. Those of files that have changed since then are left out."""
    for row in plan_files.all_rows(output):
        if row.get("origin") is not None:
            request = json.loads(row["request"])
            condition = (
                Condition("like", request["like"]) if "like" in request else Condition("prompt", request["prompt"])
            )
            if condition not in table and origins.get(condition) == row["origin"]:
                table.add(condition, row["encoding"])


def _add_embedded(output: Folder, origins: Mapping[Condition, str], table: EncodingTable) -> dict[Condition, str]:
    """Add the embeddings of this run and of interrupted runs. Return the reasons of those that do not exist."""
    reasons = {}
    for name in output.names(f"{CONDITIONS}/*/data/*.parquet"):
        with output.filesystem.open(output.path(name), "rb") as file, pq.ParquetFile(file) as part:
            for batch in part.iter_batches(batch_size=SHARD_CONDITIONS):
                for row in batch.to_pylist():
                    condition = Condition(row["field"], row["text"])
                    if origins.get(condition) != row["origin"]:
                        continue
                    if row["reason"] is not None:
                        reasons[condition] = row["reason"]
                    elif condition not in table:
                        table.add(condition, row["encoding"])
    return reasons


def _embed(
    options: GenerateOptions, encoder: Encoder, conditions: Sequence[tuple[Condition, str]], output: Folder
) -> None:
    """Embed conditions, each with its origin, and write the embeddings to a subfolder of the output."""
    if not conditions:
        return
    name = options.encoder or encoder.name
    rows = [
        {"shard": number // SHARD_CONDITIONS, **condition._asdict(), "origin": origin}
        for number, (condition, origin) in enumerate(conditions)
    ]
    listed = hashlib.sha256()
    shards: dict[int, ShardSize] = {}
    for row in rows:
        listed.update(json.dumps(row).encode())
        size = shards.setdefault(row["shard"], ShardSize())
        size.sources, size.seconds = size.sources + 1, size.seconds + 1
    folder = Folder(f"{output.uri}/{CONDITIONS}/{listed.hexdigest()[:16]}")
    plan = RequestPlan(folder, shards, plan_files.content(rows, PLANNED_SCHEMA), 0)
    work = ShardWork(
        "audiodiff generate: conditions",
        ConditionWorker,
        (folder.uri, name, encoder.digest),
        folder.uri,
        condition_counts,
    )
    say(f"{len(conditions):,} conditions to embed")
    with owned(folder, take_over=True) as lease:  # the owner of the output owns its subfolders
        job = ShardedJob(work, lease, (SETTINGS, {"encoder_digest": encoder.digest}), plan, ("data",), "conditions")
        with engine(len(job.pending), options.num_workers, options.device, isolated=job.needs_isolation) as running:
            require_shared("encoder", encoder_source(name), "config.json")
            require_shared_files("like", (condition.text for condition, _ in conditions if condition.field == "like"))
            job.run(running)
        job.records()


def _without_bad(options: GenerateOptions, loops: LoopRows, reasons: Mapping[Condition, str]) -> Iterable[LoopRow]:
    """Return the loops, with bad rows for conditions that cannot be embedded."""
    if not reasons:
        return loops.rows
    if (of_all := options.condition) is not None and of_all in reasons:
        raise ValueError(f"{of_all.field}: {reasons[of_all]}")
    rows = [
        row
        if row.condition is None or row.condition not in reasons
        else bad_row(number, [f"{row.condition.field}: {reasons[row.condition]}"])
        for number, row in enumerate(loops.rows, start=1)
    ]
    if not options.skip_bad:
        require_good(f"{loops.origin} {options.requests or options.input_dir}", rows)
    return rows
