"""Digests of the sources of shards, by which a source that was only touched or copied is told from a changed one.

_plan/digests/NNNNNN.parquet  URI (with the range of a part) and SHA-256 of each source that was read for a shard; the
                              commit names its digest
_plan/versions/NNNN.parquet   URI and later version of planned sources with the same content, append-only
"""

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_platform.audio_files import Inputs, Source
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.arrow_tables import table

RECORDED = "sources_sha256"  # key of a commit's record
DUPLICATES = "_digests"  # where `duplicates.py` keeps plans of its own
FILES_AT_ONCE = 8
SAID_EVERY_S = 10.0
_DIGESTS = pa.schema([("uri", pa.string()), ("sha256", pa.string())])
_VERSIONS = pa.schema([("uri", pa.string()), ("version", pa.string())])


def record_digests(folder: Folder, shard: int, digests: Mapping[str, str]) -> dict[str, str]:
    """Write the digests of a shard's sources; returns what the shard's commit says of them."""
    content = _parquet([{"uri": uri, "sha256": sha256} for uri, sha256 in sorted(digests.items())], _DIGESTS)
    folder.write(_name(shard), content)
    return {RECORDED: commits.sha256(content)}


def later_versions(folder: Folder) -> dict[str, str]:
    """The latest version of each planned source that has another one than the plan states."""
    files = folder.names("_plan/versions/*.parquet")
    return {row["uri"]: row["version"] for name in files for row in _rows(folder.read(name))}


def first_changed(folder: Folder, touched: Sequence[tuple[int, Source]], inputs: Inputs) -> Source | None:
    """The first of planned sources, given with their shards, whose content changed; None where all are the same.

    The new versions are then kept, so that the next run compares none. A source that no finished shard was made of counts
    as the same. A source of a finished shard whose content could not be read counts as changed.
    """
    done = commits.committed(folder)
    known = _recorded(folder, {shard: done[shard] for shard, _ in touched if shard in done})
    earlier = _recorded_for_duplicates(folder)
    comparable: list[tuple[Source, str]] = []
    for shard, source in touched:
        if sha256 := known.get(source.key) or earlier.get(source.key):
            comparable.append((source, sha256))
        elif shard in done:
            return source
    if comparable:
        megabytes = sum(source.bytes for source, _ in comparable) / 1e6
        files = len({source.uri for source, _ in comparable})
        say(f"{files:,} planned files have another time or version: comparing their content, {megabytes:,.0f} MB")
    said_at = time.monotonic()
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        digests = pool.map(inputs.sha256, [source for source, _ in comparable])
        for number, ((source, sha256), now) in enumerate(zip(comparable, digests, strict=True), start=1):
            if now != sha256:
                pool.shutdown(wait=False, cancel_futures=True)
                return source
            if time.monotonic() - said_at > SAID_EVERY_S:
                said_at = time.monotonic()
                say(f"{number:,} of {len(comparable):,} files and parts compared")
    versions = {source.uri: source.version for _, source in touched}  # of a container once, not for each part
    rows = [{"uri": uri, "version": version} for uri, version in versions.items()]
    number = len(folder.names("_plan/versions/*.parquet"))
    folder.write(f"_plan/versions/{number:04d}.parquet", _parquet(rows, _VERSIONS))
    return None


def _recorded(folder: Folder, records: Mapping[int, Mapping[str, Any]]) -> dict[str, str]:
    """The digests, by URI, of what finished shards were made of, without those of workers that did not commit."""
    digests: dict[str, str] = {}
    for shard, record in records.items():
        if RECORDED in record and commits.sha256(content := folder.read(_name(shard))) == record[RECORDED]:
            digests |= {row["uri"]: row["sha256"] for row in _rows(content)}
    return digests


def _recorded_for_duplicates(folder: Folder) -> dict[str, str]:
    """The digests, by URI, of what was read to find duplicates, which may be left out of all shards."""
    digests: dict[str, str] = {}
    for generation in sorted({name.split("/")[1] for name in folder.names(f"{DUPLICATES}/*/_commits/*")}):
        earlier = Folder(f"{folder.uri}/{DUPLICATES}/{generation}")
        digests |= _recorded(earlier, commits.committed(earlier))
    return digests


def _name(shard: int) -> str:
    return f"_plan/digests/{shard:06d}.parquet"


def _parquet(rows: Sequence[Mapping[str, str]], schema: pa.Schema) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table(rows, schema), buffer, compression="zstd")
    return buffer.getvalue()


def _rows(content: bytes) -> Iterator[dict[str, str]]:
    with pq.ParquetFile(io.BytesIO(content)) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()
