"""Records of jobs and their results, as JSON in the folder of results."""

from typing import Any, Literal

import pydantic

EndStatus = Literal["completed", "failed", "cancelled"]
JobStatus = Literal["queued", "in_progress"] | EndStatus


class JobError(pydantic.BaseModel):
    """Reason of a failure: a code for programs and a message for people."""

    model_config = pydantic.ConfigDict(frozen=True)

    code: str
    message: str


class Item(pydantic.BaseModel):
    """Result of one request of a job: a content file, or an error."""

    model_config = pydantic.ConfigDict(frozen=True)

    index: int
    file: str | None = None
    size: int = 0
    sha256: str = ""
    media_type: str = "application/octet-stream"
    details: dict[str, Any] = {}
    error: JobError | None = None


class End(pydantic.BaseModel):
    """Content of end.json: how a job ended."""

    model_config = pydantic.ConfigDict(frozen=True)

    status: EndStatus
    completed_at: float
    expires_at: float
    items: tuple[Item, ...] = ()
    error: JobError | None = None


class Job(pydantic.BaseModel):
    """A job. Times are in seconds since the epoch.

    Attributes:
        id: The random id.
        owner: The name of the key that created the job.
        status: The status.
        created_at: The time of creation.
        requests: The requests, as JSON values.
        inputs: The number of input files.
        attempts: The number of processes that claimed the job.
        is_held: True if a live process has claimed the job.
        progress: The values of the last heartbeat, such as step and steps.
        completed_at: The time of the end, if the job has ended.
        expires_at: The time after which the job is removed.
        items: The results of the requests, once the job has completed.
        error: The reason of a failure.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    id: str
    owner: str
    status: JobStatus
    created_at: float
    requests: tuple[dict[str, Any], ...]
    inputs: int
    attempts: int = 0
    is_held: bool = False
    progress: dict[str, Any] = {}
    completed_at: float | None = None
    expires_at: float
    items: tuple[Item, ...] = ()
    error: JobError | None = None


class JobPage(pydantic.BaseModel):
    """Jobs from the newest to the oldest, and whether there are older ones."""

    model_config = pydantic.ConfigDict(frozen=True)

    jobs: tuple[Job, ...]
    has_more: bool


def ended(status: EndStatus, now: float, ttl_s: float, **fields: Any) -> dict[str, Any]:
    """Return the content of end.json for a job that ends now.

    Args:
        status: How the job ended.
        now: The time in seconds since the epoch.
        ttl_s: The time in seconds for which the job is kept.
        **fields: The other fields of `End`.
    """
    return End(status=status, completed_at=now, expires_at=now + ttl_s, **fields).model_dump(mode="json")
