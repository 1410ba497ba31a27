"""SHA-256 digests of sources, to distinguish changed sources from touched or copied sources.

_plan/digests/NNNNNN.parquet  URI (with the byte range of a part) and SHA-256 of each source that was read for a shard.
                              The commit of the shard states the SHA-256 of this file.
_plan/versions/NNNN.parquet   URI and later version of planned sources with unchanged content, append-only.
"""

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_platform.audio_files import Source
from audiodiff_platform.audio_files.source_files import SourceFiles
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.arrow_tables import table

DIGESTS_KEY = "sources_sha256"  # in the record of a commit
DUPLICATES = "_digests"  # folder in which `prepare/duplicates.py` keeps plans of its own
MAX_PARALLEL_READS = 8
LINE_INTERVAL_S = 10.0
_DIGESTS = pa.schema([("uri", pa.string()), ("sha256", pa.string())])
_VERSIONS = pa.schema([("uri", pa.string()), ("version", pa.string())])


def record_digests(folder: Folder, shard: int, digests: Mapping[str, str]) -> dict[str, str]:
    """Write the digests of the sources of a shard.

    Args:
        folder: Output folder of the job.
        shard: Number of the shard.
        digests: SHA-256 by source.

    Returns:
        The entry for the record of the shard's commit.
    """
    content = _parquet([{"uri": uri, "sha256": sha256} for uri, sha256 in sorted(digests.items())], _DIGESTS)
    folder.write(_name(shard), content)
    return {DIGESTS_KEY: commits.sha256(content)}


def later_versions(folder: Folder) -> dict[str, str]:
    """Return the latest version by URI of the planned sources with a new version but unchanged content."""
    files = folder.names("_plan/versions/*.parquet")
    return {row["uri"]: row["version"] for name in files for row in _rows(folder.read(name))}


def first_changed(folder: Folder, touched: Sequence[tuple[int | None, Source]], files: SourceFiles) -> Source | None:
    """Return the first source whose content has changed, or None if no content has changed.

    If no content has changed, the new versions are written, so that the next run does not read these sources again. If
    a source has no recorded digest, it counts as changed if its shard is finished, else as unchanged.

    Args:
        folder: Output folder of the job.
        touched: Planned sources whose version has changed, each with its shard, or with None if any shard can hold it.
        files: Reads the sources.
    """
    done = commits.committed(folder)
    shards = {shard for shard, _ in touched}
    known = _recorded(folder, {shard: done[shard] for shard in done if None in shards or shard in shards})
    known_to_duplicates = _recorded_for_duplicates(folder)
    comparable: list[tuple[Source, set[str]]] = []
    for shard, source in touched:
        if recorded := known.get(source.key) or known_to_duplicates.get(source.key):
            comparable.append((source, recorded))
        elif shard in done:
            return source
    if comparable:
        megabytes = sum(source.bytes for source, _ in comparable) / 1e6
        count = len({source.uri for source, _ in comparable})
        say(f"{count:,} planned files have another time or version: comparing their content, {megabytes:,.0f} MB")
    last_line = time.monotonic()
    with ThreadPoolExecutor(MAX_PARALLEL_READS) as pool:
        digests = pool.map(files.sha256, [source for source, _ in comparable])
        for number, ((source, recorded), sha256) in enumerate(zip(comparable, digests, strict=True), start=1):
            if recorded != {sha256}:
                pool.shutdown(wait=False, cancel_futures=True)
                return source
            if time.monotonic() - last_line > LINE_INTERVAL_S:
                last_line = time.monotonic()
                say(f"{number:,} of {len(comparable):,} files and parts compared")
    versions = {source.uri: source.version for _, source in touched}  # one row per container, not per part
    rows = [{"uri": uri, "version": version} for uri, version in versions.items()]
    number = len(folder.names("_plan/versions/*.parquet"))
    folder.write(f"_plan/versions/{number:04d}.parquet", _parquet(rows, _VERSIONS))
    return None


def _recorded(folder: Folder, records: Mapping[int, Mapping[str, Any]]) -> dict[str, set[str]]:
    """Return the digests by URI of the sources of finished shards.

    A source has several digests if several shards hold it and it has changed between them. A file of digests is ignored
    if the commit of its shard does not state the SHA-256 of the file.
    """
    digests: dict[str, set[str]] = {}
    for shard, record in records.items():
        if DIGESTS_KEY in record and commits.sha256(content := folder.read(_name(shard))) == record[DIGESTS_KEY]:
            for row in _rows(content):
                digests.setdefault(row["uri"], set()).add(row["sha256"])
    return digests


def _recorded_for_duplicates(folder: Folder) -> dict[str, set[str]]:
    """Return the digests by URI of the sources that were read to find duplicates.

    Some of these sources are in no shard.
    """
    digests: dict[str, set[str]] = {}
    for generation in sorted({name.split("/")[1] for name in folder.names(f"{DUPLICATES}/*/_commits/*")}):
        subfolder = Folder(f"{folder.uri}/{DUPLICATES}/{generation}")
        digests |= _recorded(subfolder, commits.committed(subfolder))
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
