"""The plan of a job over audio files: which source belongs to which shard.

    _plan/NNNN.parquet            shard, URI, size and version of each source, byte range of a part of a large container
    _plan/digests/NNNNNN.parquet  SHA-256 of each source that was read for a shard (`source_digests.py`)
    _plan/versions/NNNN.parquet   later versions of planned sources with unchanged content, append-only

Sources are sorted by a hash of their URI, so that a shard rarely holds several files of one album. The sorted sources
are cut into shards of about equal duration, estimated from file sizes. The plan does not depend on the number of
workers. The driver holds the listing of the input in memory, but reads the planned sources as a stream.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from audiodiff_platform.audio_files import ByteRange, Inputs, Source, in_parts
from audiodiff_platform.storage import Folder
from audiodiff_platform.work.plan_files import all_rows, append, content, shard_rows
from audiodiff_platform.work.source_digests import first_changed, later_versions

PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("left_out", pa.list_(pa.string())),
        ("start", pa.int64()),  # byte range of a part of a container
        ("stop", pa.int64()),  # 0 for a whole file; plans of earlier versions lack both columns
    ]
)

MAX_SHARD_S = 3 * 3_600
TARGET_SHARDS = 256


@dataclass(slots=True)
class ShardSize:
    """The size of a shard.

    Args:
        sources: Number of sources.
        containers: Number of sources that are containers.
        seconds: Estimated duration of the audio.
    """

    sources: int = 0
    containers: int = 0
    seconds: float = 0.0


def new_sources(
    folder: Folder, sources: Iterable[Source], inputs: Inputs | None = None
) -> tuple[dict[int, ShardSize], list[Source]]:
    """Compare the plan with the present sources.

    A planned part counts as present if its container is present. The version of a source is its modification time or
    ETag. A source of the planned size but another version is read, and its digest is compared with the recorded digest.

    Args:
        folder: Folder that holds `_plan`.
        sources: All sources of the input.
        inputs: Reads sources to compare their content and to divide large containers into parts. If None, a source with
            another version counts as changed, and containers are not divided.

    Returns:
        The planned shards by number, and the sources that are in no planned shard. Large containers are divided into
        parts.

    Raises:
        ValueError: A planned source has changed or vanished.
    """
    present = {source.key: source for source in sources}
    divided: set[str] = set()
    versions = later_versions(folder)
    shards: dict[int, ShardSize] = {}
    touched: list[tuple[int, Source]] = []
    for row in all_rows(folder):
        shard, planned = row["shard"], _source(row)
        current = present.pop(planned.key, None)
        if current is None and planned.part is not None and (container := present.get(planned.uri)):
            divided.add(planned.uri)
            current = replace(container, part=planned.part)
        if current is None:
            raise ValueError(
                f"{planned.uri} was planned for {folder.uri} and has vanished: "
                "put it back, or prepare into another folder"
            )
        if current.size != planned.size:
            raise _changed(folder, planned)
        if current.version != versions.get(planned.uri, planned.version):
            touched.append((shard, current))
        _count(shards, shard, planned)
    if touched and (changed := first_changed(folder, touched, inputs) if inputs else touched[0][1]):
        raise _changed(folder, changed)
    new = [source for source in present.values() if source.key not in divided]
    return shards, in_parts(new, inputs) if inputs else new


def _changed(folder: Folder, source: Source) -> ValueError:
    remedy = "restore it, or prepare into another folder"
    return ValueError(f"{source.uri} has changed since it was planned for {folder.uri}: {remedy}")


def shard_seconds(sources: Iterable[Source], min_seconds: float) -> float:
    """Return the target duration of a shard in seconds.

    The target is the total duration divided by `TARGET_SHARDS`, at most `MAX_SHARD_S` and at least `min_seconds`. The
    minimum takes precedence.
    """
    total = sum(source.seconds for source in sources)
    return max(min_seconds, min(total / TARGET_SHARDS, MAX_SHARD_S))


def assign_shards(sources: list[Source], seconds: float, first: int) -> list[tuple[int, Source]]:
    """Assign sources to shards of about equal duration.

    Args:
        sources: The sources.
        seconds: Minimum average duration of the shards.
        first: Number of the first shard.

    Returns:
        Each source with its shard, in the order of the plan.
    """
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
    """Return the sizes of the shards that `assign_shards` has assigned."""
    shards: dict[int, ShardSize] = {}
    for shard, source in assigned:
        _count(shards, shard, source)
    return shards


@dataclass
class SourcePlan:
    """The plan of a job over audio files: shards planned earlier, and new shards for other sources.

    Args:
        folder: Folder that holds `_plan`.
        planned: Shards planned earlier.
        new: Sources that no planned shard holds.
        seconds: Duration of audio per new shard.
        left_out: Names of items that are not used, by source.
    """

    folder: Folder
    planned: Mapping[int, ShardSize]
    new: list[Source]
    seconds: float
    left_out: Mapping[str, list[str]] = field(default_factory=dict)

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
    """Append new shards to the plan, as a new plan file.

    Args:
        folder: Folder that holds `_plan`.
        assigned: Sources of the new shards, each with its shard.
        left_out: Names of items that are not used, by source.
        generation: Number of plan files at the time when the shards were planned, or None for the present number.

    Raises:
        JobError: Another job has written its plan in the meantime.
    """
    if not assigned:
        return
    rows = [_row(shard, source, left_out) for shard, source in assigned]
    append(folder, content(rows, PLAN_SCHEMA), generation)


def _row(shard: int, source: Source, left_out: Mapping[str, list[str]]) -> dict[str, Any]:
    row = {"shard": shard, "uri": source.uri, "size": source.size, "version": source.version}
    part = source.part or ByteRange(0, 0)
    return {**row, "left_out": left_out.get(source.key, []), "start": part.start, "stop": part.stop}


def _source(row: Mapping[str, Any]) -> Source:
    part = ByteRange(row["start"], row["stop"]) if row.get("stop") else None
    return Source(row["uri"], row["size"], row["version"], part)


def read_shard(folder: Folder, shard: int) -> list[tuple[Source, list[str]]]:
    """Return the sources of a planned shard, each with the names of its items that are not used."""
    return [(_source(row), row["left_out"]) for row in shard_rows(folder, shard)]


def _count(shards: dict[int, ShardSize], shard: int, source: Source) -> None:
    size = shards.setdefault(shard, ShardSize())
    size.sources += 1
    size.containers += source.is_container
    size.seconds += source.seconds
