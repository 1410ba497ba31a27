"""Listings of folders on object stores and by pattern, in which the folder's own name is never a pattern."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

S3_KEYS_PER_REQUEST = 1_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a folder: its name relative to it, its size in bytes, and what changes when its content does."""

    name: str
    size: int
    version: str


@dataclass
class PassedOver:
    """Counts, by kind, of what a listing passes over, and the names of the folders that cannot be read.

    Folders whose name `hides` accepts are not listed.
    """

    hides: Callable[[str], bool]
    counts: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


def entry_on_disk(name: str, status: os.stat_result) -> Entry:
    return Entry(name, status.st_size, str(status.st_mtime_ns))


def entry_on_store(name: str, size: int | str, details: dict[str, Any]) -> Entry:
    """An entry from what a store reports of an object; the version is a property that changes with the content."""
    for key in ("ETag", "etag", "blob_id", "mtime"):
        if details.get(key):
            return Entry(name, int(size), str(details[key]).strip('"'))
    return Entry(name, int(size), "")


def fixed_folder(pattern: str) -> str:
    """The folder in which all matches of a glob pattern lie: its leading parts without wildcards."""
    fixed: list[str] = []
    for part in pattern.split("/")[:-1]:
        if any(character in part for character in "*?["):
            break
        fixed.append(part)
    return "/".join(fixed)


def matches(name: str, pattern: str) -> bool:
    """True where each part of a name matches that part of a glob pattern; `**` stands for any number of parts."""
    return _match(name.split("/"), pattern.split("/"))


def _match(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_match(parts[start:], patterns[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _match(parts[1:], patterns[1:])


def objects(filesystem: Any, root: str, folder: str = "", *, deep: bool = True) -> Iterator[Entry]:
    """All objects below a folder of `root`, or only those directly in it, in no order, a page at a time.

    Markers of empty folders have names that end in a slash.
    """
    match filesystem.protocol:
        case "s3" | ("s3", *_):
            yield from _objects_of_s3(filesystem, root, folder, {} if deep else {"Delimiter": "/"})
        case "gs" | "gcs" | ("gs" | "gcs", *_):
            yield from _objects_of_gcs(filesystem, root, folder, {} if deep else {"delimiter": "/"})
        case _:
            files = filesystem.find(f"{root}/{folder}".rstrip("/"), maxdepth=None if deep else 1, detail=True)
            for path, details in sorted(files.items()):
                yield entry_on_store(path[len(root) + 1 :], details["size"], details)


def without_hidden(entries: Iterable[Entry], passed_over: PassedOver | None) -> Iterator[Entry]:
    """The entries that lie in no hidden folder; an object store has folders only as parts of names."""
    last = None
    for entry in entries:
        if passed_over and (hidden := _hidden_folder(entry.name, passed_over.hides)):
            passed_over.counts["hidden folders"] += hidden != last  # a store lists the objects of a folder together
            last = hidden
        else:
            yield entry


def _hidden_folder(name: str, hides: Callable[[str], bool]) -> str | None:
    parts = name.split("/")
    return next(("/".join(parts[: place + 1]) for place, part in enumerate(parts[:-1]) if hides(part)), None)


def _objects_of_s3(filesystem: Any, root: str, folder: str, parameters: dict[str, str]) -> Iterator[Entry]:
    bucket, prefix = _prefix(root, folder)
    request = {"Bucket": bucket, "Prefix": prefix, **parameters}
    while request:
        page = filesystem.call_s3("list_objects_v2", **request)
        request = {**request, "ContinuationToken": page["NextContinuationToken"]} if page.get("IsTruncated") else {}
        for details in page.get("Contents", []):
            yield entry_on_store(f"{bucket}/{details['Key']}"[len(root) + 1 :], details["Size"], details)


def _objects_of_gcs(filesystem: Any, root: str, folder: str, parameters: dict[str, str]) -> Iterator[Entry]:
    bucket, prefix = _prefix(root, folder)
    page: dict[str, Any] = {"nextPageToken": None}
    while "nextPageToken" in page:
        request = {"prefix": prefix or None, "pageToken": page["nextPageToken"], **parameters}
        page = filesystem.call("GET", "b/{}/o", bucket, json_out=True, **request)
        for details in page.get("items", []):
            yield entry_on_store(f"{bucket}/{details['name']}"[len(root) + 1 :], details["size"], details)


def remove_from_s3(filesystem: Any, paths: Sequence[str]) -> None:
    """Remove objects of one bucket; raises OSError that names one that stays."""
    for first in range(0, len(paths), S3_KEYS_PER_REQUEST):
        batch = [path.partition("/") for path in paths[first : first + S3_KEYS_PER_REQUEST]]
        keys = {"Objects": [{"Key": key} for _, _, key in batch], "Quiet": True}
        for error in filesystem.call_s3("delete_objects", Bucket=batch[0][0], Delete=keys).get("Errors", []):
            raise OSError(f"s3://{batch[0][0]}/{error.get('Key')} cannot be removed: {error.get('Message')}")


def _prefix(root: str, folder: str) -> tuple[str, str]:
    bucket, _, key = root.partition("/")
    return bucket, "".join(f"{part}/" for part in (key, folder) if part)
