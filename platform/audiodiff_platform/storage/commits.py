"""The commit protocol of sharded jobs.

1. `claim`: the settings of the work are written once; the same folder with other settings is refused, the difference shown.
2. A worker puts its shard's files in place, then `commit`s the shard: `_commits/<shard>.json`, last.
3. `committed` shards are left out of a rerun; what belongs to no commit is a leftover.
4. `succeed`: `_index.parquet`, by which readers find the parts, then `_SUCCESS`, which holds the digest of the index.
5. `pack`: the records of a finished job become `_commits/NNNN.parquet`, if there are many.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.index import INDEX, CommittedPart, from_parquet, parts_of, to_parquet
from audiodiff_platform.storage.lease import require_token

SUCCESS = "_SUCCESS"
LOOSE_AT_MOST = 1_000  # records that stay files of their own
RECORDS_PER_PACK = 1_000
PACK_SCHEMA = pa.schema([("shard", pa.int32()), ("record", pa.string())])


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Names settings: the first 16 hex digits of the SHA-256 of their canonical JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def require_same(folder: Folder, name: str, settings: Mapping[str, Any]) -> None:
    """Raises ValueError where a folder holds work of other settings, the difference shown."""
    if not folder.exists(name):
        return
    stated = folder.read_json(name)
    differences = [
        f"{key} {stated.get(key)!r} there, {settings.get(key)!r} asked for"
        for key in sorted({*stated, *settings} - {"digest"})
        if stated.get(key) != settings.get(key)
    ]
    if differences:
        raise ValueError(
            f"{folder.uri} holds other work ({'; '.join(differences)}): use another folder, or the same settings"
        )


def claim(folder: Folder, name: str, settings: Mapping[str, Any]) -> None:
    """Write `settings` and their digest to `name`, if nothing is there.

    Raises:
        ValueError: Other settings are there; the message shows the differences.
    """
    require_same(folder, name, settings)
    try:
        folder.create_json(name, {**settings, "digest": settings_digest(settings)})
    except FileExistsError:  # another process was first
        require_same(folder, name, settings)


def commit(folder: Folder, shard: int, record: Mapping[str, Any], token: str | None = None) -> None:
    """Declare the parts of a shard whole.

    Args:
        folder: The folder of the job.
        shard: The number of the shard.
        record: What the parts hold: rows, sizes, digests.
        token: The token of the lease under which the shard was made; None where no lease is held.

    Raises:
        LeaseLostError: The folder has another owner by now.
        FileExistsError: Another record of the shard is there.
    """
    if token is not None:
        require_token(folder, token)
    folder.create_json(commit_name(shard), dict(record))


def committed(folder: Folder) -> dict[int, dict[str, Any]]:
    """Return the records of the finished shards by shard."""
    records: dict[int, dict[str, Any]] = {}
    loose: dict[int, dict[str, Any]] = {}
    for name, content in folder.read_all("_commits/*").items():
        if name.endswith(".json"):
            loose[int(name.rsplit("/", 1)[-1].removesuffix(".json"))] = json.loads(content)
        elif name.endswith(".parquet"):
            records |= _unpacked(content)
    return {**loose, **records}


def committed_one(folder: Folder, shard: int) -> dict[str, Any] | None:
    """Return the record of a shard that was finished in this run, or None; records of earlier runs may be packed."""
    try:
        return folder.read_json(commit_name(shard))
    except FileNotFoundError:
        return None


def pack(folder: Folder, records: Mapping[int, Mapping[str, Any]]) -> None:
    """Put the records of a finished job into files of RECORDS_PER_PACK records each, if more than LOOSE_AT_MOST are files.

    A pack is whole before the files that it replaces are removed, so a kill loses no record.
    """
    loose = [int(name.rsplit("/", 1)[-1].removesuffix(".json")) for name in folder.names("_commits/*.json")]
    if len(loose) <= LOOSE_AT_MOST:
        return
    for number in sorted({shard // RECORDS_PER_PACK for shard in loose}):
        shards = sorted(records.keys() & range(number * RECORDS_PER_PACK, (number + 1) * RECORDS_PER_PACK))
        buffer = io.BytesIO()
        packed = {"shard": shards, "record": [json.dumps(records[shard], sort_keys=True) for shard in shards]}
        pq.write_table(pa.table(packed, schema=PACK_SCHEMA), buffer, compression="zstd")
        folder.write(pack_name(shards[0]), buffer.getvalue())
    folder.remove_files([commit_name(shard) for shard in loose])


def file_sha256(file: Path) -> str:
    """The digest by which a part is known, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sha256(content: bytes) -> str:
    """As `file_sha256`, of a part in memory."""
    return hashlib.sha256(content).hexdigest()


def begin(folder: Folder) -> None:
    """Withdraws `_SUCCESS` before shards are added."""
    folder.remove(SUCCESS)


def succeed(folder: Folder, summary: Mapping[str, Any], records: Mapping[int, Mapping[str, Any]]) -> None:
    """Remove what unfinished workers left, write the index of the parts, then `_SUCCESS` with the summary; pack the records."""
    folder.remove("_tmp")
    index = to_parquet(list(parts_of(records)))
    folder.write(INDEX, index)
    folder.write_json(SUCCESS, {**summary, "index_sha256": sha256(index)})
    pack(folder, records)


def finished(folder: Folder) -> tuple[dict[str, Any], list[CommittedPart], bytes]:
    """Read a finished folder -> the summary in `_SUCCESS`, the parts, and the content of the index.

    Folders of earlier versions have no index: their commit records are read.

    Raises:
        FileNotFoundError: The folder has no `_SUCCESS`.
        ValueError: The index is not the one of `_SUCCESS`.
    """
    summary = folder.read_json(SUCCESS)
    if "index_sha256" not in summary:
        parts = list(parts_of(committed(folder)))
        return summary, parts, to_parquet(parts)
    content = folder.read(INDEX)
    if sha256(content) != summary["index_sha256"]:
        raise ValueError(
            f"{folder.uri}: {INDEX} is not the one that {SUCCESS} names: a job adds to the folder or was stopped, run that job to its end"
        )
    return summary, from_parquet(content), content


def commit_name(shard: int) -> str:
    """Return the name of the commit record of a shard."""
    return f"_commits/{shard:06d}.json"


def pack_name(shard: int) -> str:
    """Return the name of the pack that holds the commit record of a shard, once packed."""
    return f"_commits/{shard // RECORDS_PER_PACK:04d}.parquet"


def record_places(folder: Folder, shards: Iterable[int]) -> list[str]:
    """Return the names of the files that hold the commit records of `shards`: without these files, the shards are made anew.

    A record that was packed just before a kill is in two files.
    """
    wanted = set(shards)
    loose = {commit_name(shard) for shard in wanted}.intersection(folder.names("_commits/*.json"))
    packs = folder.read_all("_commits/*.parquet")
    return sorted(loose.union(name for name, content in packs.items() if wanted.intersection(_unpacked(content))))


def _unpacked(content: bytes) -> dict[int, dict[str, Any]]:
    """Return the records in a pack, by shard."""
    packed = pq.read_table(io.BytesIO(content), schema=PACK_SCHEMA).to_pydict()
    return dict(zip(packed["shard"], map(json.loads, packed["record"]), strict=True))
