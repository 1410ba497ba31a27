"""Entries of folder listings, and their selection by glob patterns and hidden folders."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a folder listing.

    Attributes:
        name: The name of the file relative to the folder.
        size: The size of the file in bytes.
        version: A text that changes when the content changes.
    """

    name: str
    size: int
    version: str


@dataclass
class PassedOver:
    """Folders, links and files that a listing skips.

    Attributes:
        hides: A function that returns True for the name of a folder to skip.
        counts: The number of skipped items of each kind, such as "hidden folders".
        unreadable: The names of folders and links that cannot be read.
    """

    hides: Callable[[str], bool]
    counts: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


def entry_on_disk(name: str, status: os.stat_result) -> Entry:
    """Return the entry of a file on disk. Its version is the time of the last change."""
    return Entry(name, status.st_size, str(status.st_mtime_ns))


def entry_on_store(name: str, size: int | str, details: dict[str, Any]) -> Entry:
    """Return the entry of an object from the details that its store reports."""
    for key in ("ETag", "etag", "blob_id", "mtime"):
        if details.get(key):
            return Entry(name, int(size), str(details[key]).strip('"'))
    return Entry(name, int(size), "")


def fixed_folder(pattern: str) -> str:
    """Return the folder that contains all matches of a glob pattern: its first parts without wildcards."""
    fixed: list[str] = []
    for part in pattern.split("/")[:-1]:
        if any(character in part for character in "*?["):
            break
        fixed.append(part)
    return "/".join(fixed)


def matches(name: str, pattern: str) -> bool:
    """Return True if a name matches a glob pattern.

    `*` and `?` match within one part of the name. `**` matches any number of parts.
    """
    return _match(name.split("/"), pattern.split("/"))


def _match(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_match(parts[start:], patterns[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _match(parts[1:], patterns[1:])


def without_hidden(entries: Iterable[Entry], passed_over: PassedOver | None) -> Iterator[Entry]:
    """Yield the entries of an object store that are not in a hidden folder, and count the hidden folders."""
    last_hidden = None
    for entry in entries:
        if passed_over and (hidden := _hidden_folder(entry.name, passed_over.hides)):
            # Objects of a folder are adjacent in the listing of a store.
            passed_over.counts["hidden folders"] += hidden != last_hidden
            last_hidden = hidden
        else:
            yield entry


def _hidden_folder(name: str, hides: Callable[[str], bool]) -> str | None:
    parts = name.split("/")
    return next(("/".join(parts[: depth + 1]) for depth, part in enumerate(parts[:-1]) if hides(part)), None)
