"""Which sources make which shard: `_plan/NNNN.parquet`, append-only.

    _plan/NNNN.parquet            shard, URI, size and version of each source, range of bytes of a part of a large container
    _plan/digests/NNNNNN.parquet  SHA-256 of each source that a shard was made of (`source_digests.py`)
    _plan/versions/NNNN.parquet   later versions of planned sources whose content is the same, append-only

Sources are ordered by a hash of their URI, so that neighbours in a shard are not the same album, and cut into shards of about equal
duration, estimated from their sizes. None of it depends on the number of workers. The driver holds one listing, and no planned source twice.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_platform.audio_files import ByteRange, Inputs, Source, in_parts
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.arrow_tables import table
from audiodiff_platform.work.source_digests import first_changed, later_versions

PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("left_out", pa.list_(pa.string())),
        ("start", pa.int64()),  # of the part of a container
        ("stop", pa.int64()),  # 0 for a whole file; plans of earlier versions have no parts, and lack both columns
    ]
)

SHARD_SECONDS_AT_MOST = 3 * 3_600
SHARDS_AIMED_AT = 256
ROW_GROUP_ROWS = 4_096  # a worker reads only those that hold its shard
READ_AHEAD_BYTES = 1 << 20  # about a row group: a store's client would read 50 MB ahead


@dataclass(slots=True)
class ShardSize:
    """How many sources a shard has, how many of them are containers, and how many seconds of audio they may hold."""

    sources: int = 0
    containers: int = 0
    seconds: float = 0.0


def new_sources(
    folder: Folder, sources: Iterable[Source], inputs: Inputs | None = None
) -> tuple[dict[int, ShardSize], list[Source]]:
    """The shards planned so far, and those of `sources` that are in none of them, large containers in parts.

    A planned container counts by all its parts. A source of the planned size with another version (a time of modification,
    an ETag) is read from `inputs` and compared by its digest; without `inputs` it counts as changed, and containers are not divided.
    Raises ValueError that names a planned source which has changed or vanished.
    """
    present = {source.key: source for source in sources}
    divided: set[str] = set()
    versions = later_versions(folder)
    shards: dict[int, ShardSize] = {}
    touched: list[tuple[int, Source]] = []
    for shard, planned, _ in _all_rows(folder):
        now = present.pop(planned.key, None)
        if now is None and planned.part is not None and (whole := present.get(planned.uri)):
            divided.add(planned.uri)
            now = replace(whole, part=planned.part)
        if now is None:
            raise ValueError(
                f"{planned.uri} was planned for {folder.uri} and has vanished: put it back, or prepare into another folder"
            )
        if now.size != planned.size:
            raise _changed(folder, planned)
        if now.version != versions.get(planned.uri, planned.version):
            touched.append((shard, now))
        _count(shards, shard, planned)
    if touched and (changed := first_changed(folder, touched, inputs) if inputs else touched[0][1]):
        raise _changed(folder, changed)
    new = [source for source in present.values() if source.key not in divided]
    return shards, in_parts(new, inputs) if inputs else new


def _changed(folder: Folder, source: Source) -> ValueError:
    remedy = "restore it, or prepare into another folder"
    return ValueError(f"{source.uri} has changed since it was planned for {folder.uri}: {remedy}")


def shard_seconds(sources: Iterable[Source], at_least: float) -> float:
    """The audio that each of their shards should hold: a share of the whole, at least `at_least` and at most SHARD_SECONDS_AT_MOST."""
    total = sum(source.seconds for source in sources)
    return max(at_least, min(total / SHARDS_AIMED_AT, SHARD_SECONDS_AT_MOST))


def assign_shards(sources: list[Source], seconds: float, first: int) -> list[tuple[int, Source]]:
    """Sources in the plan's order, each with its shard, counted from `first`: shards of about equal size, of `seconds` or more."""
    total = sum(source.seconds for source in sources)
    target = total / max(1, int(total / seconds))
    assigned = []
    shard, filled = first, 0.0
    for source in sorted(sources, key=_order):
        if filled and filled + source.seconds / 2 > target:
            shard, filled = shard + 1, 0.0
        assigned.append((shard, source))
        filled += source.seconds
    return assigned


def _order(source: Source) -> tuple[bytes, str]:
    return hashlib.blake2b(source.key.encode(), digest_size=16).digest(), source.key


def sizes(assigned: Iterable[tuple[int, Source]]) -> dict[int, ShardSize]:
    """The shards that `assign_shards` made."""
    shards: dict[int, ShardSize] = {}
    for shard, source in assigned:
        _count(shards, shard, source)
    return shards


@dataclass
class SourcePlan:
    """The plan of a job over audio files: shards planned earlier, and new shards of the sources that no shard holds.

    Args:
        folder: The folder that holds `_plan`.
        planned: The shards planned earlier.
        new: The sources that no shard holds.
        seconds: The audio of each new shard.
    """

    folder: Folder
    planned: Mapping[int, ShardSize]
    new: list[Source]
    seconds: float
    left_out: Mapping[str, list[str]] = field(default_factory=dict)
    """Items that are not used, by source."""

    def __post_init__(self) -> None:
        self._generation = len(self.folder.names("_plan/*.parquet"))
        self._assigned = assign_shards(self.new, self.seconds, first=len(self.planned))
        self.shards: Mapping[int, ShardSize] = {**self.planned, **sizes(self._assigned)}

    def write(self) -> None:
        """Append the new shards to the plan."""
        append_plan(self.folder, self._assigned, self.left_out, self._generation)


def append_plan(
    folder: Folder,
    assigned: Sequence[tuple[int, Source]],
    left_out: Mapping[str, list[str]],
    generation: int | None = None,
) -> None:
    """Write new shards to the plan, beside those that are there.

    Args:
        folder: The folder that holds `_plan`.
        assigned: The sources of the new shards.
        left_out: Items not to be used, by source.
        generation: The number of plan files that were there when the shards were planned; None for those that are there now.

    Raises:
        JobError: Another job has written its plan meanwhile.
    """
    if not assigned:
        return
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, PLAN_SCHEMA, compression="zstd") as writer:
        for start in range(0, len(assigned), ROW_GROUP_ROWS):
            some = assigned[start : start + ROW_GROUP_ROWS]
            writer.write_table(table([_row(shard, source, left_out) for shard, source in some], PLAN_SCHEMA))
    if generation is None:
        generation = len(folder.names("_plan/*.parquet"))
    name = f"_plan/{generation:04d}.parquet"
    if not folder.create(name, buffer.getvalue()) and folder.read(name) != buffer.getvalue():
        raise JobError(f"{folder.uri}/{name} was written by another job: run the same command again")


def _row(shard: int, source: Source, left_out: Mapping[str, list[str]]) -> dict[str, Any]:
    row = {"shard": shard, "uri": source.uri, "size": source.size, "version": source.version}
    part = source.part or ByteRange(0, 0)
    return {**row, "left_out": left_out.get(source.key, []), "start": part.start, "stop": part.stop}


def _source(row: Mapping[str, Any]) -> Source:
    part = ByteRange(row["start"], row["stop"]) if row.get("stop") else None
    return Source(row["uri"], row["size"], row["version"], part)


def read_shard(folder: Folder, shard: int) -> list[tuple[Source, list[str]]]:
    """The sources of a planned shard in their order, each with its items that are left out.

    Opens the last plan file, which holds the shards of a run that adds files. Other shards are found by bisection: each
    plan file begins where the one before ends.
    """
    names = folder.names("_plan/*.parquet")
    first, last = 0, len(names)  # the plan file that holds the shard is in names[first:last]
    place = last - 1
    while first < last:
        with _opened(folder, names[place]) as plan:
            if plan.metadata.row_group(0).column(0).statistics.min > shard:
                last = place
            elif plan.metadata.row_group(plan.num_row_groups - 1).column(0).statistics.max < shard:
                first = place + 1
            else:
                return [(source, left_out) for _, source, left_out in _rows(plan, shard)]
        place = (first + last) // 2
    return []


def _all_rows(folder: Folder) -> Iterator[tuple[int, Source, list[str]]]:
    for name in folder.names("_plan/*.parquet"):
        with _opened(folder, name) as plan:
            yield from _rows(plan)


@contextmanager
def _opened(folder: Folder, name: str) -> Iterator[pq.ParquetFile]:
    with (
        folder.reached(name),
        folder.filesystem.open(folder.path(name), "rb", block_size=READ_AHEAD_BYTES) as file,
        pq.ParquetFile(file) as plan,
    ):
        yield plan


def _rows(plan: pq.ParquetFile, only: int | None = None) -> Iterator[tuple[int, Source, list[str]]]:
    for group in range(plan.num_row_groups):
        shards = plan.metadata.row_group(group).column(0).statistics
        if only is not None and not shards.min <= only <= shards.max:
            continue
        for row in plan.read_row_group(group).to_pylist():
            if only is None or row["shard"] == only:
                yield row["shard"], _source(row), row["left_out"]


def _count(shards: dict[int, ShardSize], shard: int, source: Source) -> None:
    size = shards.setdefault(shard, ShardSize())
    size.sources += 1
    size.containers += source.is_container
    size.seconds += source.seconds
