"""The commit protocol that prepare and generate share.

1. `claim`: the settings of the work are written once; the same folder with other settings is refused, the difference shown.
2. A worker puts its shard's files in place, then `commit`s the shard: `_commits/<shard>.json`, last.
3. `committed` shards are left out of a rerun; what belongs to no commit is a leftover; `_SUCCESS` says that all is there.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.lease import require_token

SUCCESS = "_SUCCESS"


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
        raise ValueError(f"{folder.uri} holds other work ({'; '.join(differences)}): use another folder, or the same settings")


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
    """Records of the finished shards by shard."""
    contents = folder.read_all("_commits/*.json")
    return {int(name.rsplit("/", 1)[-1].removesuffix(".json")): json.loads(content) for name, content in contents.items()}


def committed_one(folder: Folder, shard: int) -> dict[str, Any] | None:
    """Return the record of a finished shard, or None if the shard is not finished."""
    try:
        return folder.read_json(commit_name(shard))
    except FileNotFoundError:
        return None


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


def succeed(folder: Folder, summary: Mapping[str, Any]) -> None:
    """Removes what unfinished workers left, then writes `_SUCCESS` with the summary."""
    folder.remove("_tmp")
    folder.write_json(SUCCESS, dict(summary))


def commit_name(shard: int) -> str:
    return f"_commits/{shard:06d}.json"
