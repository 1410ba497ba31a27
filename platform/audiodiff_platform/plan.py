"""Which files make which shard: `_plan/NNNN.parquet`, append-only.

Files are ordered by a hash of their URI, so that neighbours in a shard are not the same album, and cut into shards of about equal
duration, estimated from their sizes. None of it depends on the number of workers.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.audio import AUDIO_EXTENSIONS
from audiodiff_platform.storage import Folder

SCHEMA = pa.schema([("shard", pa.int32()), ("uri", pa.string()), ("size", pa.int64()), ("version", pa.string())])

# Bytes per second of typical files, to balance shards; a wrong guess makes a shard larger or smaller, nothing else.
_BYTES_PER_SECOND = {".wav": 176_000, ".aif": 176_000, ".aiff": 176_000, ".flac": 100_000}
_COMPRESSED_BYTES_PER_SECOND = 24_000

SHARD_SECONDS_AT_LEAST = 600
SHARD_SECONDS_AT_MOST = 3 * 3_600
SHARDS_AIMED_AT = 256


@dataclass(frozen=True)
class Source:
    """A file of the input: its URI relative to the input folder, its size in bytes, and what changes when it does."""

    uri: str
    size: int
    version: str

    @property
    def seconds(self) -> float:
        return self.size / _BYTES_PER_SECOND.get(PurePosixPath(self.uri).suffix.lower(), _COMPRESSED_BYTES_PER_SECOND)


def list_sources(folder: Folder) -> tuple[list[Source], int]:
    """The audio files under a folder, sorted by URI, and how many other files there are; raises ValueError where there are none."""
    if not folder.filesystem.isdir(folder.root):
        raise ValueError(f"input_dir {folder.uri}: no such folder")
    found = folder.filesystem.find(folder.root, detail=True)
    sources, others = [], 0
    for path, entry in found.items():
        if PurePosixPath(path).suffix.lower() in AUDIO_EXTENSIONS:
            version = entry.get("ETag") or entry.get("etag") or entry.get("mtime")
            sources.append(Source(path[len(folder.root) + 1 :], int(entry["size"]), str(version).strip('"')))
        else:
            others += 1
    if not sources:
        raise ValueError(f"input_dir {folder.uri}: holds no audio files ({others} others; known are {' '.join(sorted(AUDIO_EXTENSIONS))})")
    return sorted(sources, key=lambda source: source.uri), others


def plan_shards(folder: Folder, sources: Sequence[Source], shard_minutes: float | None) -> tuple[dict[int, list[Source]], dict[int, list[Source]]]:
    """The shards planned before, as they were, and new ones for the sources that are in none of them.

    Raises ValueError that names a planned file which has changed or vanished.
    """
    planned = read_plan(folder)
    known = {source.uri: source for shard in planned.values() for source in shard}
    present = {source.uri: source for source in sources}
    for uri, source in known.items():
        if uri not in present:
            raise ValueError(f"{uri} was planned for {folder.uri} and has vanished: put it back, or prepare into another folder")
        if present[uri] != source:
            raise ValueError(f"{uri} has changed since it was planned for {folder.uri}: restore it, or prepare into another folder")
    new = [source for source in sources if source.uri not in known]
    return planned, dict(enumerate(_cut(new, shard_minutes), start=max(planned, default=-1) + 1))


def append_plan(folder: Folder, added: dict[int, list[Source]]) -> None:
    """Writes new shards to the plan, beside those that are there."""
    if added:
        folder.write(f"_plan/{len(folder.names('_plan/*.parquet')):04d}.parquet", _to_parquet(added))


def read_plan(folder: Folder, only: int | None = None) -> dict[int, list[Source]]:
    """The shards planned so far, or the one that is asked for."""
    shards: dict[int, list[Source]] = {}
    for name in folder.names("_plan/*.parquet"):
        table = pq.read_table(io.BytesIO(folder.read(name)), filters=None if only is None else [("shard", "=", only)])
        for row in table.to_pylist():
            shards.setdefault(row["shard"], []).append(Source(row["uri"], row["size"], row["version"]))
    return shards


def _cut(sources: Iterable[Source], shard_minutes: float | None) -> list[list[Source]]:
    ordered = sorted(sources, key=lambda source: (hashlib.blake2b(source.uri.encode()).digest(), source.uri))
    total = sum(source.seconds for source in ordered)
    automatic = min(max(total / SHARDS_AIMED_AT, SHARD_SECONDS_AT_LEAST), SHARD_SECONDS_AT_MOST)
    target = automatic if shard_minutes is None else shard_minutes * 60
    shards: list[list[Source]] = []
    filled = target
    for source in ordered:
        if filled >= target:
            shards.append([])
            filled = 0.0
        shards[-1].append(source)
        filled += source.seconds
    return shards


def _to_parquet(shards: dict[int, list[Source]]) -> bytes:
    rows = [{"shard": shard, "uri": s.uri, "size": s.size, "version": s.version} for shard, sources in shards.items() for s in sources]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()
