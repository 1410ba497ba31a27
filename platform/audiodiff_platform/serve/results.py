"""Jobs and their results in a folder, which survive restarts of the server.

    jobs/<name of the key>/<id>/    a task of `task_folder`: the requests, the inputs, the progress, the results

An id is random and cannot be guessed; its first part is the time of creation, so that ids sort by age. A job belongs to
the key that created it: with another key, it does not exist. A job is kept until `expires_at` (see `expiry`).

After a restart, `unfinished` returns the jobs that no live process has claimed; `claim` starts such a job anew. A job
that ends several processes is failed.
"""

import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pydantic

from audiodiff_platform.serve.job_record import End, Item, Job, JobError, JobPage, ended
from audiodiff_platform.serve.key_file import NAME
from audiodiff_platform.serve.running_job import RunningJob, input_name
from audiodiff_platform.serve.task_folder import (
    ATTEMPT_FIELDS,
    END,
    REQUEST,
    DamagedResultError,
    TaskFolder,
    TaskState,
)

JOBS = "jobs"
DAY_S = 86_400.0
MAX_ATTEMPTS = 3
MAX_PAGE = 100
CONCURRENT_READS = 8
PREFIX = "job_"
TIME_DIGITS = 14
"""Hexadecimal digits of the time of creation in an id, in microseconds: jobs of one process are created in order."""
_ID = re.compile(rf"{PREFIX}[0-9a-f]{{{TIME_DIGITS + 32}}}", re.ASCII)


class JobNotFoundError(LookupError):
    """No job of this key has this id. The server answers with status 404."""


class Jobs:
    """The jobs in a folder. All methods block: call them on a thread.

    Args:
        tasks: The folder of results.
        ttl_s: The time in seconds for which a job is kept after its end.
    """

    def __init__(self, tasks: TaskFolder, ttl_s: float = DAY_S) -> None:
        self._tasks, self._ttl_s = tasks, ttl_s

    def create(self, owner: str, requests: Sequence[Mapping[str, Any]], inputs: Sequence[bytes] = ()) -> Job:
        """Store a new job.

        Args:
            owner: The name of the key.
            requests: The requests, as JSON values.
            inputs: The content of the input files, such as uploads.

        Raises:
            ResultsFullError: There is no space for the job.
        """
        now = self._tasks.now()
        task = _task(owner, f"{PREFIX}{int(now * 1e6):0{TIME_DIGITS}x}{secrets.token_hex(16)}")
        for index, content in enumerate(inputs):
            self._tasks.write(f"{task}/{input_name(index)}", content)
        request = {"created_at": now, "requests": [dict(request) for request in requests], "inputs": len(inputs)}
        self._tasks.create(task, request)
        return self._existing(task)

    def get(self, owner: str, job_id: str) -> Job:
        """Return a job.

        Raises:
            JobNotFoundError: The owner has no such job.
        """
        return self._existing(_task(owner, job_id))

    def page(self, owner: str, limit: int = 20, after: str | None = None) -> JobPage:
        """Return the jobs of an owner, the newest first.

        Args:
            owner: The name of the key.
            limit: The maximum number of jobs, 1 to MAX_PAGE.
            after: The id of the last job of the previous page, which may have been deleted since.

        Raises:
            ValueError: A limit out of range.
            JobNotFoundError: `after` is not an id.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise ValueError(f"limit {limit}: must be 1 to {MAX_PAGE}")
        before = None if after is None else _task(owner, after)
        tasks = [task for task in self._by_task(f"{JOBS}/{owner}/*/*.json") if before is None or task[0] < before]
        with ThreadPoolExecutor(CONCURRENT_READS) as pool:
            jobs = [job for job in pool.map(lambda task: self._job(*task), tasks[: limit + 1]) if job is not None]
        return JobPage(jobs=tuple(jobs[:limit]), has_more=len(tasks) > limit)

    def waiting(self) -> list[str]:
        """Return the ids of the jobs, of all owners, that no process has claimed yet, the oldest first."""
        tasks = [
            (task.rpartition("/")[2], {file.rpartition("/")[2] for file in files})
            for task, files in self._by_task(f"{JOBS}/*/*/*.json")
        ]
        return sorted(
            number
            for number, files in tasks
            if END not in files and not any(name.startswith("attempt-") for name in files)
        )

    def content(self, owner: str, job_id: str, index: int = 0) -> tuple[Item, bytes]:
        """Return the result of one request of a completed job.

        Raises:
            JobNotFoundError: The owner has no such job, or the job has no such content.
            DamagedResultError: The content is not what was written.
        """
        job = self.get(owner, job_id)
        item = next((item for item in job.items if item.index == index), None)
        if item is None or item.file is None:
            raise JobNotFoundError(f"job {job_id} has no content {index}: its status is {job.status}")
        try:
            content = self._tasks.folder.read(f"{_task(owner, job_id)}/{item.file}")
        except FileNotFoundError:
            content = b""
        if hashlib.sha256(content).hexdigest() != item.sha256:
            self.get(owner, job_id)  # the job was deleted at the same time
            raise DamagedResultError(f"content {index} of job {job_id} is missing or damaged: create the job again")
        return item, content

    def cancel(self, owner: str, job_id: str) -> Job:
        """End a job as cancelled if it has not ended. Its process stops at its next heartbeat."""
        job = self.get(owner, job_id)
        if job.completed_at is None:
            self._tasks.end(_task(owner, job_id), ended("cancelled", self._tasks.now(), self._ttl_s))
        return self.get(owner, job_id)

    def delete(self, owner: str, job_id: str) -> None:
        """Delete a job and its results. Its process, if any, stops at its next heartbeat."""
        self.get(owner, job_id)
        self._tasks.delete(_task(owner, job_id))

    def claim(self, owner: str, job_id: str) -> "RunningJob | None":
        """Claim a job for this process.

        Returns:
            The claim, or None if the job has ended, is held by a live process, or was given up because MAX_ATTEMPTS
            processes ended while they ran the job.
        """
        task = _task(owner, job_id)
        job, state = self._existing(task), self._tasks.read(task)
        if state is None or state.end is not None or state.is_held(self._tasks.now()):
            return None
        if state.lost >= MAX_ATTEMPTS:
            error = JobError(code="replica_lost", message=f"{MAX_ATTEMPTS} replicas ended while they ran this job")
            self._tasks.end(task, ended("failed", self._tasks.now(), self._ttl_s, error=error))
            return None
        attempt = self._tasks.claim(task, state)
        return None if attempt is None else RunningJob(self._tasks, attempt, job, self._ttl_s)

    def unfinished(self) -> Iterator[tuple[str, str]]:
        """Yield owner and id of the jobs that no live process has claimed, the oldest first."""
        open_tasks = [task for task in self._by_task(f"{JOBS}/*/*/*.json") if f"{task[0]}/{END}" not in task[1]]
        for task, files in sorted(open_tasks, key=lambda task: task[0].rpartition("/")[2]):
            job = self._job(task, files)
            if job is not None and job.completed_at is None and not job.is_held:
                yield job.owner, job.id

    def _by_task(self, pattern: str) -> list[tuple[str, list[str]]]:
        """Return the tasks and the names of their JSON files, sorted by name in descending order."""
        tasks: dict[str, list[str]] = {}
        for entry in self._tasks.folder.files(pattern):
            tasks.setdefault(entry.name.rpartition("/")[0], []).append(entry.name)
        return sorted(((task, files) for task, files in tasks.items() if f"{task}/{REQUEST}" in files), reverse=True)

    def _existing(self, task: str) -> Job:
        state = self._tasks.read(task)
        if state is None:
            raise JobNotFoundError(f"no job {task.rpartition('/')[2]}")
        return self._described(task, state)

    def _job(self, task: str, files: Sequence[str]) -> Job | None:
        state = self._tasks.state_of(task, [*files])
        return None if state is None else self._described(task, state)

    def _described(self, task: str, state: TaskState) -> Job:
        _, owner, number = task.split("/")
        created_at = int(number[len(PREFIX) : len(PREFIX) + TIME_DIGITS], 16) / 1e6
        known = {"id": number, "owner": owner, "created_at": created_at, "attempts": state.attempts}
        known |= {"requests": state.request.get("requests", ()), "inputs": state.request.get("inputs", 0)}
        if state.end is not None or not state.request:
            try:
                end = End.model_validate(state.end)
            except pydantic.ValidationError:
                error = JobError(code="result_damaged", message="the record of the job is damaged: create a new job")
                expires_at = created_at + self._ttl_s
                end = End(status="failed", completed_at=created_at, expires_at=expires_at, error=error)
            return Job(**known, **dict(end))
        progress = {name: value for name, value in state.attempt.items() if name not in ATTEMPT_FIELDS}
        status = progress.pop("status", "queued")
        is_held = state.is_held(self._tasks.now())
        expires_at = created_at + self._ttl_s
        return Job(**known, status=status, is_held=is_held, progress=progress, expires_at=expires_at)


def _task(owner: str, job_id: str) -> str:
    """Return the folder of a job. Other text than an id never becomes a path."""
    assert NAME.fullmatch(owner), owner
    if not _ID.fullmatch(job_id):
        raise JobNotFoundError(f"no job {job_id[:60]!r}")
    return f"{JOBS}/{owner}/{job_id}"
