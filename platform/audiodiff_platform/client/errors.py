"""Errors of the server and of the connection to it."""

import json
from typing import Any

import httpx

from audiodiff_platform.client.answers import Job


class AudiodiffError(Exception):
    """Base of all errors of the client."""


class ConnectionFailedError(AudiodiffError):
    """The server cannot be reached, or the connection broke."""


class TimedOutError(AudiodiffError):
    """The server did not answer in time."""


class JobFailedError(AudiodiffError):
    """A job that was waited for failed or was cancelled.

    Attributes:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        reason = f": {job.error.message}" if job.error else ""
        super().__init__(f"job {job.id} is {job.status}{reason}")
        self.job = job


class ApiError(AudiodiffError):
    """An error that the server answered with.

    Attributes:
        status: The HTTP status, or None for an error within a response.
        message: The description of the error.
        type: The kind of the error.
        code: The code of the error, for programs.
        param: The field of the request that is wrong.
        request_id: The id of the request in the logs of the server.
        retry_after_s: The time in seconds after which the request may succeed.
    """

    def __init__(
        self,
        status: int | None,
        message: str,
        *,
        type: str | None = None,  # noqa: A002 the name in the server's answer
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message if status is None else f"{status}: {message}")
        self.status, self.message, self.type, self.code, self.param = status, message, type, code, param
        self.request_id, self.retry_after_s = request_id, retry_after_s


class AuthenticationError(ApiError):
    """The API key is missing or wrong."""


class NotFoundError(ApiError):
    """The route, model, encoder or job does not exist."""


class ConflictError(ApiError):
    """A request with the same Idempotency-Key still runs."""


class TooLargeError(ApiError):
    """The body is too large."""


class InvalidRequestError(ApiError):
    """A field has a wrong value, or the audio cannot be decoded."""


class RateLimitError(ApiError):
    """A limit of the API key is reached, or the queue is full."""


class ServerError(ApiError):
    """The server failed."""


class UnavailableError(ServerError):
    """The server cannot take the request now."""


_BY_STATUS: dict[int, type[ApiError]] = {
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    422: InvalidRequestError,
    429: RateLimitError,
    503: UnavailableError,
}
_BY_TYPE: dict[str, type[ApiError]] = {
    "authentication_error": AuthenticationError,
    "not_found_error": NotFoundError,
    "invalid_request_error": InvalidRequestError,
    "rate_limit_error": RateLimitError,
    "server_error": ServerError,
}


def error_of(response: httpx.Response, retry_after_s: float | None) -> ApiError:
    """Return the error of a response that was read."""
    try:
        error = json.loads(response.content)["error"]
        fields = {name: error.get(name) for name in ("type", "code", "param")}
        message = str(error["message"])
    except (ValueError, KeyError, TypeError, AttributeError):  # the answer of a proxy
        fields, message = {}, " ".join(response.text[:200].split()) or response.reason_phrase
    status = response.status_code
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else ApiError)
    request_id = response.headers.get("x-request-id")
    return kind(status, message, **fields, request_id=request_id, retry_after_s=retry_after_s)


def error_of_json(data: dict[str, Any]) -> ApiError:
    """Return the error of a JSON object within a response: of an `error` event, or of a request of a list."""
    error = data.get("error", {})
    kind = _BY_TYPE.get(str(error.get("type")), ApiError)
    fields = {name: error.get(name) for name in ("type", "code", "param")}
    message = str(error.get("message", "the server failed"))
    return kind(None, message, **fields)
