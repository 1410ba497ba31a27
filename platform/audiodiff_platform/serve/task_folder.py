"""Tasks in a folder: each is claimed by one process at a time and ends exactly once.

    <task>/input-NNNN        what the task needs, written before request.json
    <task>/request.json      what is to be done; a task without this file does not exist
    <task>/attempt-N.json    the Nth process that claimed the task: its heartbeat and progress
    <task>/content-N-NNNN    what attempt N made, written before end.json
    <task>/end.json          how the task ended, with the names and digests of its content

No file has two writers. request.json, the first version of an attempt and end.json are created exclusively, so that
of two processes on any machines one claims a task, and one ends it, whether by finishing or by cancelling it. A process
may die between any two writes: content that no end.json names is never read, and a task whose attempt has no recent
heartbeat can be claimed anew. The heartbeats are compared with the reader's clock: the clocks of the machines must
agree within a fraction of the lease.

All methods block: call them on a thread.
"""

import errno
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from audiodiff_platform.storage import Folder, conditional

REQUEST, END = "request.json", "end.json"
LEASE_S = 60.0
RELEASED = 0.0
ATTEMPT_FIELDS = frozenset({"token", "lost", "held_until"})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ResultsFullError(OSError):
    """The disk is full, or the folder of results has its maximum size."""


class TaskEndedError(Exception):
    """The task was ended, deleted or claimed by another process: its work must stop."""


class DamagedResultError(OSError):
    """A file of a result is missing or has other content than was written."""


@dataclass(frozen=True)
class TaskState:
    """State of a task, as its files tell.

    Attributes:
        request: The content of request.json; empty if the file is damaged.
        attempts: The number of attempts.
        attempt: The content of the last attempt's file; empty if there is no attempt.
        end: The content of end.json; None if the task has not ended, empty if the file is damaged.
    """

    request: dict[str, Any]
    attempts: int
    attempt: dict[str, Any]
    end: dict[str, Any] | None

    @property
    def lost(self) -> int:
        """The number of attempts that neither ended the task nor released it."""
        if self.attempts == 0:
            return 0
        was_released = self.attempt.get("held_until") == RELEASED
        return int(self.attempt.get("lost", 0)) + (0 if was_released else 1)

    def is_held(self, now: float) -> bool:
        """Return True if a live process has claimed the task."""
        return bool(now < self.attempt.get("held_until", 0.0))


class TaskFolder:
    """The tasks in a folder, whose total size is bounded.

    Args:
        folder: The folder, on a local disk or an object store with conditional writes.
        max_bytes: The maximum size of all files in bytes. The size is counted by `recount`, and the writes of other
            processes since then are not known.
        lease_s: The time in seconds after which a claim without a heartbeat ends.
        now: A clock in seconds since the epoch.
    """

    def __init__(
        self, folder: Folder, max_bytes: int, lease_s: float = LEASE_S, now: Callable[[], float] = time.time
    ) -> None:
        if not folder.is_local:
            conditional.require_conditional_writes(folder)
        self.folder, self.lease_s, self.now = folder, lease_s, now
        self._max_bytes, self._lock, self._used_bytes = max_bytes, threading.Lock(), 0

    @property
    def used_bytes(self) -> int:
        """The size of all files at the last count, with what this process has written and removed since, in bytes."""
        return self._used_bytes

    def recount(self, used_bytes: int) -> None:
        """Set the size of all files."""
        with self._lock:
            self._used_bytes = used_bytes

    def create(self, task: str, request: Mapping[str, Any]) -> bool:
        """Create a task. Return False if the task exists.

        Args:
            task: The name of the task's folder.
            request: The content of request.json, as JSON values.
        """
        content = {**request, "token": uuid.uuid4().hex}
        with self._space(len(_json(content))):
            return self._create(f"{task}/{REQUEST}", content)

    def read(self, task: str) -> TaskState | None:
        """Return the state of a task, or None if the task does not exist."""
        return self.state_of(task, [entry.name for entry in self.folder.files(f"{task}/*.json")])

    def state_of(self, task: str, files: list[str]) -> TaskState | None:
        """Return the state of a task, given the names of its JSON files, or None if the task was deleted."""
        names = {file.removeprefix(f"{task}/") for file in files}
        try:
            request = self._read_json(f"{task}/{REQUEST}") if REQUEST in names else None
            if request is None:
                return None
            attempts = _last_attempt(names)
            attempt = self._read_json(f"{task}/{_attempt(attempts)}") if attempts and END not in names else {}
            end = self._read_json(f"{task}/{END}") if END in names else None
        except FileNotFoundError:
            return None
        return TaskState(request, attempts, attempt, end)

    def claim(self, task: str, state: TaskState) -> "Attempt | None":
        """Claim a task for this process. Return None if another process holds it or has just claimed it."""
        if state.end is not None or state.is_held(self.now()):
            return None
        attempt = Attempt(self, task, state.attempts + 1, state.lost)
        return attempt if self._create(attempt.file, attempt.content()) else None

    def end(self, task: str, end: Mapping[str, Any]) -> bool:
        """End a task. Return False if the task had ended before."""
        return self._create(f"{task}/{END}", {**end, "token": uuid.uuid4().hex})

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file atomically.

        Raises:
            ResultsFullError: There is no space. No part of the file is left.
        """
        with self._space(len(content)), _full_disk_named(self.folder):
            self.folder.write(name, content)

    def delete(self, task: str) -> None:
        """Delete a task with its files. A deletion that is cut short leaves a task that does not exist."""
        size = sum(entry.size for entry in self.folder.files(f"{task}/*"))
        for name in (f"{task}/{REQUEST}", task):
            try:
                self.folder.remove(name)
            except FileNotFoundError:  # another process deletes the task too
                continue
        self._free(size)

    def remove_files(self, pattern: str) -> None:
        """Remove the files that match a glob pattern."""
        entries = list(self.folder.files(pattern))
        self.folder.remove_files([entry.name for entry in entries])
        self._free(sum(entry.size for entry in entries))

    def _free(self, size: int) -> None:
        with self._lock:
            self._used_bytes = max(0, self._used_bytes - size)

    def _create(self, name: str, content: Mapping[str, Any]) -> bool:
        with _full_disk_named(self.folder):
            return conditional.create(self.folder, name, _json(content))

    @contextmanager
    def _space(self, size: int) -> Iterator[None]:
        """Count `size` bytes, which the context writes. Heartbeats and ends are not counted: they always fit."""
        with self._lock:
            if self._used_bytes + size > self._max_bytes:
                sizes = f"{self._used_bytes:,} of {self._max_bytes:,} bytes"
                raise ResultsFullError(errno.ENOSPC, f"{self.folder.uri}: the results take {sizes}")
            self._used_bytes += size
        try:
            yield
        except OSError:
            self._free(size)
            raise

    def _read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a file, empty if the file is damaged."""
        try:
            return self.folder.read_json(name)
        except ValueError:
            return {}


class Attempt:
    """The claim of a task by this process.

    Args:
        tasks: The folder of the task.
        task: The name of the task.
        number: The number of the attempt, from 1.
        lost: The number of earlier attempts that neither ended the task nor released it.
    """

    def __init__(self, tasks: TaskFolder, task: str, number: int, lost: int) -> None:
        self.tasks, self.task, self.number = tasks, task, number
        self.file = f"{task}/{_attempt(number)}"
        self._token = uuid.uuid4().hex
        self._lost, self._progress = lost, dict[str, Any]()

    def content(self) -> dict[str, Any]:
        """Return the content of the attempt's file, with a heartbeat of now."""
        held_until = self.tasks.now() + self.tasks.lease_s
        return {**self._progress, "token": self._token, "lost": self._lost, "held_until": held_until}

    def heartbeat(self, **progress: Any) -> None:
        """Prolong the claim and publish progress.

        Args:
            **progress: JSON values that replace those of earlier calls with the same names.

        Raises:
            TaskEndedError: The task was cancelled, deleted, or claimed by another process after a pause.
        """
        self._progress.update(progress)
        names = {entry.name.rpartition("/")[2] for entry in self.tasks.folder.files(f"{self.task}/*.json")}
        if REQUEST not in names or END in names or _last_attempt(names) != self.number:
            raise TaskEndedError(f"{self.task} was ended, deleted or claimed by another process")
        self.tasks.folder.write(self.file, _json(self.content()))

    def write_content(self, index: int, content: bytes) -> str:
        """Write a content file, and return its name in the folder of the task."""
        name = f"content-{self.number}-{index:04d}"
        self.tasks.write(f"{self.task}/{name}", content)
        return name

    def remove_content(self) -> None:
        """Remove the content files of this attempt, which frees their space."""
        self.tasks.remove_files(f"{self.task}/content-{self.number}-*")

    def release(self) -> None:
        """Give up the claim at once, so that another process can claim the task."""
        self.tasks.folder.write(self.file, _json({**self.content(), "held_until": RELEASED}))


@contextmanager
def _full_disk_named(folder: Folder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResultsFullError(errno.ENOSPC, f"{folder.uri}: no space is left on the disk") from error
        raise


def _attempt(number: int) -> str:
    return f"attempt-{number}.json"


def _last_attempt(names: set[str]) -> int:
    numbers = [name[len("attempt-") : -len(".json")] for name in names if name.startswith("attempt-")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
