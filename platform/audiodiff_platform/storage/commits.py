"""Commit protocol of jobs whose work is divided into shards.

A part is an output file of a shard. A shard is committed when its commit record exists; the record lists the parts.

1. `claim` writes the settings of the job to the output folder. A job with other settings cannot use the folder.
2. A worker writes the parts of a shard, then `commit` writes the commit record `_commits/<shard>.json`.
3. A rerun skips the shards that `committed` returns. Files that no commit record lists are leftovers.
4. `succeed` writes `_index.parquet`, a list of all parts for readers, then `_SUCCESS` with the digest of the index.
5. `pack` replaces the commit records of a finished job by `_commits/NNNN.parquet`, if there are many records.

`withdraw` removes the records of shards whose files were lost, so that a rerun makes the shards again.
"""

import hashlib
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.index import INDEX, CommittedPart, from_parquet, parts_of, streamed, to_parquet
from audiodiff_platform.storage.lease import require_token
from audiodiff_platform.storage.leftovers import remove_leftovers

SUCCESS = "_SUCCESS"
MAX_LOOSE_RECORDS = 1_000  # records that stay separate files
RECORDS_PER_PACK = 1_000
PACK_SCHEMA = pa.schema([("shard", pa.int32()), ("record", pa.string())])


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the settings as sorted JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def require_same(folder: Folder, name: str, settings: Mapping[str, Any]) -> None:
    """Require that a folder holds no settings, or the same settings.

    Args:
        folder: The output folder of the job.
        name: The name of the settings file.
        settings: The settings of the job.

    Raises:
        ValueError: The folder holds other settings. The message shows the differences.
    """
    if not folder.exists(name):
        return
    stored = folder.read_json(name)
    differences = [
        f"{key} is {stored.get(key)!r} in the folder, {settings.get(key)!r} in this job"
        for key in sorted({*stored, *settings} - {"digest"})
        if stored.get(key) != settings.get(key)
    ]
    if differences:
        raise ValueError(
            f"{folder.uri} holds work with other settings ({'; '.join(differences)}): "
            "use another folder, or the same settings"
        )


def claim(folder: Folder, name: str, settings: Mapping[str, Any]) -> None:
    """Write the settings of a job and their digest, unless the folder holds the same settings.

    Args:
        folder: The output folder of the job.
        name: The name of the settings file.
        settings: The settings of the job.

    Raises:
        ValueError: The folder holds other settings. The message shows the differences.
    """
    require_same(folder, name, settings)
    try:
        folder.create_json(name, {**settings, "digest": settings_digest(settings)})
    except FileExistsError:  # another process was first
        require_same(folder, name, settings)


def commit(folder: Folder, shard: int, record: Mapping[str, Any], token: str | None = None) -> None:
    """Write the commit record of a shard, after all its parts.

    Args:
        folder: The output folder of the job.
        shard: The number of the shard.
        record: The names, digests, sizes and rows of the parts.
        token: The token of the lease of the job, or None for a job without a lease.

    Raises:
        LeaseLostError: The folder now has another owner.
        FileExistsError: The shard has another record.
    """
    if token is not None:
        require_token(folder, token)
    folder.create_json(commit_name(shard), dict(record))


def committed(folder: Folder) -> dict[int, dict[str, Any]]:
    """Return the commit records of a folder by shard."""
    records: dict[int, dict[str, Any]] = {}
    loose: dict[int, dict[str, Any]] = {}
    for name, content in folder.read_all("_commits/*").items():
        if name.endswith(".json"):
            loose[int(name.rsplit("/", 1)[-1].removesuffix(".json"))] = json.loads(content)
        elif name.endswith(".parquet"):
            records |= _unpacked(content)
    return {**loose, **records}


def committed_one(folder: Folder, shard: int) -> dict[str, Any] | None:
    """Return the commit record of a shard, or None. Packed records of earlier runs are not read."""
    try:
        return folder.read_json(commit_name(shard))
    except FileNotFoundError:
        return None


def pack(folder: Folder, records: Mapping[int, Mapping[str, Any]]) -> None:
    """Replace more than MAX_LOOSE_RECORDS commit records of a finished job by Parquet files.

    A Parquet file with RECORDS_PER_PACK records is complete before the records that it replaces are removed, so a
    killed process loses no record.

    Args:
        folder: The output folder of the job.
        records: All commit records by shard.
    """
    loose = [int(name.rsplit("/", 1)[-1].removesuffix(".json")) for name in folder.names("_commits/*.json")]
    if len(loose) <= MAX_LOOSE_RECORDS:
        return
    for number in sorted({shard // RECORDS_PER_PACK for shard in loose}):
        shards = sorted(records.keys() & range(number * RECORDS_PER_PACK, (number + 1) * RECORDS_PER_PACK))
        folder.write(pack_name(shards[0]), _packed({shard: records[shard] for shard in shards}))
    folder.remove_files([commit_name(shard) for shard in loose])


def withdraw(folder: Folder, shards: Collection[int]) -> None:
    """Remove the commit records of shards, so that the shards are run again. Call `begin` first.

    A process that is killed meanwhile leaves each record whole or none: other records of a pack are never missing.

    Args:
        folder: The output folder of the job, whose lease the caller holds.
        shards: The numbers of the shards.
    """
    for name, content in folder.read_all("_commits/*.parquet").items():
        packed = _unpacked(content)
        kept = {shard: record for shard, record in packed.items() if shard not in shards}
        if not kept:
            folder.remove(name)
        elif len(kept) < len(packed):
            folder.write(name, _packed(kept))
    loose = {commit_name(shard) for shard in shards}
    folder.remove_files(sorted(loose.intersection(folder.names("_commits/*.json"))))


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sha256(content: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def begin(folder: Folder) -> None:
    """Remove `_SUCCESS`, because the job is about to add shards."""
    folder.remove(SUCCESS)


def succeed(folder: Folder, summary: Mapping[str, Any], records: Mapping[int, Mapping[str, Any]]) -> None:
    """Mark a folder as finished: write the index, then `_SUCCESS`, and pack the commit records.

    What killed processes left is removed first.

    Args:
        folder: The output folder of the job.
        summary: The content of `_SUCCESS`.
        records: All commit records by shard.
    """
    remove_leftovers(folder)
    index = to_parquet(list(parts_of(records)))
    folder.write(INDEX, index)
    folder.write_json(SUCCESS, {**summary, "index_sha256": sha256(index)})
    pack(folder, records)


def summary_of(folder: Folder) -> dict[str, Any]:
    """Return the content of `_SUCCESS`.

    Raises:
        FileNotFoundError: The folder has no `_SUCCESS`.
        ValueError: The file is damaged.
    """
    try:
        return folder.read_json(SUCCESS)
    except ValueError as error:
        raise ValueError(f"{error}: run the job again to write it") from None


def finished(folder: Folder) -> tuple[dict[str, Any], list[CommittedPart], bytes]:
    """Read the summary and the index of a finished folder.

    Folders of earlier versions have no index. Their commit records are read instead.

    Returns:
        The summary in `_SUCCESS`, the parts, and the content of the index file.

    Raises:
        FileNotFoundError: The folder has no `_SUCCESS`.
        ValueError: `_SUCCESS` is damaged, or the index is missing or does not match the digest in `_SUCCESS`.
    """
    summary = summary_of(folder)
    if "index_sha256" not in summary:
        parts = list(parts_of(committed(folder)))
        return summary, parts, to_parquet(parts)
    try:
        content = folder.read(INDEX)
    except FileNotFoundError:
        raise _without_index(folder) from None
    _require_digest(folder, sha256(content), summary)
    return summary, from_parquet(content), content


def finished_parts(folder: Folder) -> Iterator[CommittedPart]:
    """Yield the parts of a finished folder without their row groups. The index is read as a stream.

    Raises:
        FileNotFoundError: The folder has no `_SUCCESS`.
        ValueError: See `finished`.
    """
    summary = summary_of(folder)
    if "index_sha256" not in summary:
        yield from parts_of(committed(folder))
        return
    try:
        with folder.reached(INDEX), folder.filesystem.open(folder.path(INDEX), "rb") as file:
            _require_digest(folder, hashlib.file_digest(file, "sha256").hexdigest(), summary)
            file.seek(0)
            yield from streamed(file)
    except FileNotFoundError:
        raise _without_index(folder) from None


def _without_index(folder: Folder) -> ValueError:
    return ValueError(f"{folder.uri}: {INDEX} is missing: run the job again to write it")


def _require_digest(folder: Folder, digest: str, summary: Mapping[str, Any]) -> None:
    """Require that the digest of the index is the one in `_SUCCESS`."""
    if digest != summary["index_sha256"]:
        raise ValueError(
            f"{folder.uri}: {INDEX} does not match the digest in {SUCCESS} (one of them was changed, or a job is "
            "adding to the folder): run the job again to write them"
        )


def commit_name(shard: int) -> str:
    """Return the name of the commit record of a shard."""
    return f"_commits/{shard:06d}.json"


def pack_name(shard: int) -> str:
    """Return the name of the Parquet file for the packed commit record of a shard."""
    return f"_commits/{shard // RECORDS_PER_PACK:04d}.parquet"


def record_places(folder: Folder, shards: Iterable[int]) -> list[str]:
    """Return the names of the files with the commit records of `shards`.

    After the removal of these files, a rerun makes the shards again. A record can be in two files, if a
    process was killed while it packed the record.
    """
    numbers = set(shards)
    loose = {commit_name(shard) for shard in numbers}.intersection(folder.names("_commits/*.json"))
    packs = folder.read_all("_commits/*.parquet")
    return sorted(loose.union(name for name, content in packs.items() if numbers.intersection(_unpacked(content))))


def _packed(records: Mapping[int, Mapping[str, Any]]) -> bytes:
    """Return the content of a Parquet file with commit records, sorted by shard."""
    packed = {"shard": list(records), "record": [json.dumps(record, sort_keys=True) for record in records.values()]}
    buffer = io.BytesIO()
    pq.write_table(pa.table(packed, schema=PACK_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def _unpacked(content: bytes) -> dict[int, dict[str, Any]]:
    """Return the commit records in a Parquet file by shard."""
    packed = pq.read_table(io.BytesIO(content), schema=PACK_SCHEMA).to_pydict()
    return dict(zip(packed["shard"], map(json.loads, packed["record"]), strict=True))
