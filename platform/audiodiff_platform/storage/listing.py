"""Listings of folders on object stores and by pattern, in which the folder's own name is never a pattern."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any


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
