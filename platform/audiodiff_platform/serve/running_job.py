"""A job that a process runs: inputs, heartbeats, results, and the end."""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from audiodiff_platform.serve.job_record import Item, Job, JobError, ended
from audiodiff_platform.serve.task_folder import Attempt, TaskEndedError, TaskFolder


class RunningJob:
    """A job that this process has claimed.

    Call `heartbeat` several times per lease, also while the job is in a queue. All methods block: call them
    on a thread.

    Args:
        tasks: The folder of results.
        attempt: The claim.
        job: The job as it was before the claim.
        ttl_s: The time in seconds for which the job is kept after its end.
    """

    def __init__(self, tasks: TaskFolder, attempt: Attempt, job: Job, ttl_s: float) -> None:
        self.job = job
        self._tasks, self._attempt, self._ttl_s = tasks, attempt, ttl_s
        self._items: list[Item] = []

    def heartbeat(self, status: Literal["queued", "in_progress"], **progress: Any) -> None:
        """Prolong the claim, and publish the status and JSON values such as step, steps and queue_position.

        Raises:
            TaskEndedError: The job was cancelled, deleted, or claimed by another process after a pause.
        """
        self._attempt.heartbeat(status=status, **progress)

    def input(self, index: int) -> bytes:
        """Return an input file."""
        return self._tasks.folder.read(f"{self._attempt.task}/{input_name(index)}")

    def add(self, index: int, content: bytes, media_type: str, details: Mapping[str, Any]) -> None:
        """Store the result of a request.

        Args:
            index: The index of the request.
            content: The content of the file.
            media_type: The media type of the content.
            details: JSON values such as seed, model and digest.
        """
        file, sha256 = self._attempt.write_content(index, content), hashlib.sha256(content).hexdigest()
        size = len(content)
        self._items.append(
            Item(index=index, file=file, size=size, sha256=sha256, media_type=media_type, details=dict(details))
        )

    def add_error(self, index: int, code: str, message: str) -> None:
        """Record that a request of the job failed."""
        self._items.append(Item(index=index, error=JobError(code=code, message=message)))

    def complete(self) -> None:
        """End the job as completed, with the results that were added.

        Raises:
            TaskEndedError: The job was cancelled, or another process has ended it.
        """
        self._finish("completed", items=tuple(sorted(self._items, key=lambda item: item.index)))

    def fail(self, code: str, message: str) -> None:
        """End the job as failed, and remove its results.

        Raises:
            TaskEndedError: The job was cancelled, or another process has ended it.
        """
        self._attempt.remove_content()
        self._finish("failed", error=JobError(code=code, message=message))

    def release(self) -> None:
        """Give up the claim, so that another process starts the job at once, as before a shutdown."""
        self._attempt.release()

    def _finish(self, status: Literal["completed", "failed"], **fields: Any) -> None:
        if not self._tasks.end(self._attempt.task, ended(status, self._tasks.now(), self._ttl_s, **fields)):
            raise TaskEndedError(f"job {self.job.id} was ended before")


def input_name(index: int) -> str:
    """Return the name of an input file in the folder of its job."""
    return f"input-{index:04d}"
