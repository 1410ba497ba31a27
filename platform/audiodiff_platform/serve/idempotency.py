"""Idempotent requests: a request that is repeated with its Idempotency-Key gets the stored response.

    idempotent/<name of the key>/<SHA-256 of the Idempotency-Key>/    a task of `task_folder`

The digest of the first request's body is stored, and another body with the same Idempotency-Key is refused. One process
runs the request at a time. If the process dies, its claim ends with the lease, and a repetition runs the request anew.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from audiodiff_platform.serve.key_file import NAME
from audiodiff_platform.serve.results import DAY_S
from audiodiff_platform.serve.task_folder import Attempt, DamagedResultError, TaskFolder, TaskState

IDEMPOTENT = "idempotent"
_KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)


class IdempotencyMismatchError(ValueError):
    """The Idempotency-Key was used with another body. The server answers with status 422."""


class StillRunningError(Exception):
    """The first request with the Idempotency-Key still runs. The server answers with status 409.

    Attributes:
        retry_after_s: The whole seconds after which the response may be ready.
    """

    retry_after_s = 1


@dataclass(frozen=True)
class StoredResponse:
    """A response: status, headers and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class IdempotentRequests:
    """The responses by the name of the API key and the Idempotency-Key. All methods block: call them on a thread.

    Args:
        tasks: The folder of results.
        ttl_s: The time in seconds for which a response is kept.
    """

    def __init__(self, tasks: TaskFolder, ttl_s: float = DAY_S) -> None:
        self._tasks, self._ttl_s = tasks, ttl_s

    def begin(self, owner: str, key: str, digest: str) -> "StoredResponse | RunningRequest":
        """Return the stored response, or the right to run the request.

        Args:
            owner: The name of the API key.
            key: The Idempotency-Key, 1 to 255 visible ASCII characters.
            digest: A digest of method, path and body.

        Raises:
            ValueError: The key is not valid.
            IdempotencyMismatchError: The key was used with another digest.
            StillRunningError: Another process runs the request.
            DamagedResultError: The stored response is not what was written.
            ResultsFullError: There is no space for the response.
        """
        assert NAME.fullmatch(owner), owner
        if not _KEY.fullmatch(key):
            raise ValueError("Idempotency-Key: must be 1 to 255 visible ASCII characters")
        task = f"{IDEMPOTENT}/{owner}/{hashlib.sha256(key.encode()).hexdigest()}"
        self._tasks.create(task, {"digest": digest, "created_at": self._tasks.now()})
        state = self._tasks.read(task)
        if state is None:  # it expired at this moment
            raise StillRunningError(f"the response of Idempotency-Key {key} is being removed: try again")
        if state.request.get("digest") != digest:
            raise IdempotencyMismatchError(f"Idempotency-Key {key} was used with another body: use a new key")
        if state.end is not None:
            return self._stored(task, state, key)
        attempt = self._tasks.claim(task, state)
        if attempt is None:
            raise StillRunningError(f"the request of Idempotency-Key {key} is still running: try again")
        return RunningRequest(self._tasks, attempt, self._ttl_s)

    def _stored(self, task: str, state: TaskState, key: str) -> StoredResponse:
        end = state.end or {}
        try:
            body = self._tasks.folder.read(f"{task}/{end['file']}")
            if hashlib.sha256(body).hexdigest() == end["sha256"]:
                return StoredResponse(end["status"], end["headers"], body)
        except (KeyError, FileNotFoundError):
            pass
        raise DamagedResultError(f"the response of Idempotency-Key {key} is damaged: use a new key")


class RunningRequest:
    """An idempotent request that this process runs. Call `heartbeat` several times per lease."""

    def __init__(self, tasks: TaskFolder, attempt: Attempt, ttl_s: float) -> None:
        self._tasks, self._attempt, self._ttl_s = tasks, attempt, ttl_s

    def heartbeat(self) -> None:
        """Prolong the claim.

        Raises:
            TaskEndedError: Another process claimed the request after a pause.
        """
        self._attempt.heartbeat()

    def finish(self, response: StoredResponse) -> None:
        """Store the response. It has no effect if another process stored a response before."""
        now = self._tasks.now()
        end = {
            "file": self._attempt.write_content(0, response.body),
            "sha256": hashlib.sha256(response.body).hexdigest(),
            "status": response.status,
            "headers": dict(response.headers),
            "completed_at": now,
            "expires_at": now + self._ttl_s,
        }
        self._tasks.end(self._attempt.task, end)

    def forget(self) -> None:
        """Delete the request, so that its Idempotency-Key can be used for another body, as after a refusal.

        Raises:
            TaskEndedError: Another process claimed the request after a pause.
        """
        self._attempt.heartbeat()
        self._tasks.delete(self._attempt.task)

    def release(self) -> None:
        """Give up the claim, so that a repetition runs the request at once, as after a failure that may pass."""
        self._attempt.release()
