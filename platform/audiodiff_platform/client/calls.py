"""Calls: the requests over HTTP, and the parsing of their responses, for both clients."""

import base64
import json
import os
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx

from audiodiff_platform.client.answers import Audio, Encoding, Job, JobPage, Latents, Model
from audiodiff_platform.client.errors import (
    ApiError,
    AudiodiffError,
    ConnectionFailedError,
    TimedOutError,
    error_of,
    error_of_json,
)
from audiodiff_platform.client.fields import AudioSource, JobRequest, Verb
from audiodiff_platform.client.retries import retry_after_s

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE, KEY_VARIABLE = "AUDIODIFF_URL", "AUDIODIFF_API_KEY"
TIMEOUT_S, CONNECT_TIMEOUT_S, POLL_S = 600.0, 10.0, 1.0
SEEDS = 2**32
EVENT_STREAM = "text/event-stream"
IDEMPOTENCY_KEY = "Idempotency-Key"

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request over HTTP.

    Attributes:
        method: The method.
        path: The path below the server's URL.
        parse: The function that returns the answer of a successful response.
        content: Arguments of `httpx.Client.build_request` that hold the content.
        headers: The headers.
    """

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    content: dict[str, Any] = field(default_factory=dict, repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def is_keyed(self) -> bool:
        """True for a call with an Idempotency-Key."""
        return IDEMPOTENCY_KEY in self.headers

    @property
    def is_deletion(self) -> bool:
        """True for a call that cancels a job, whose repetition would delete the job."""
        return self.method == "DELETE"

    def result(self, outcome: httpx.Response | httpx.TransportError) -> T:
        """Return the answer of a final outcome, or raise its error."""
        if isinstance(outcome, httpx.TransportError):
            reason = str(outcome) or type(outcome).__name__
            if isinstance(outcome, httpx.TimeoutException):
                raise TimedOutError(f"{self.method} {self.path}: no answer in time ({reason})") from outcome
            raise ConnectionFailedError(f"{self.method} {self.path}: {reason}") from outcome
        if not outcome.is_success:
            raise error_of(outcome, retry_after_s(outcome.headers))
        try:
            return self.parse(outcome)
        except (ValueError, KeyError, TypeError) as error:
            raise AudiodiffError(f"{self.method} {self.path}: the answer is not that of an audiodiff server") from error


def connection(base_url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """Return the arguments of an httpx client.

    Raises:
        ValueError: The key cannot be a header.
    """
    headers: dict[str, str | bytes] = {"User-Agent": "audiodiff-client"}
    if api_key is not None:
        if not api_key.strip() or not api_key.isprintable():
            raise ValueError("api_key must be printable and not empty")
        headers["Authorization"] = f"Bearer {api_key}".encode()
    timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
    return {"base_url": base_url, "headers": headers, "timeout": timeout}


def from_environment() -> tuple[str, str | None]:
    """Return the URL and the API key from the environment: AUDIODIFF_URL and AUDIODIFF_API_KEY."""
    return os.environ.get(URL_VARIABLE) or DEFAULT_URL, os.environ.get(KEY_VARIABLE) or None


def audio(
    verb: Verb, fields: Mapping[str, Any], sources: Sequence[AudioSource] = (), idempotency_key: str | None = None
) -> Call[Audio]:
    """Return the call of a request for one audio file.

    A missing seed is drawn here, so that the result of a repetition is the same.
    """
    headers = {"Accept": "audio/*"} | _key(idempotency_key)
    return Call("POST", f"/v1/{verb}", _audio, _request(verb, fields, sources), headers)


def events(
    verb: Verb, fields: Mapping[str, Any], sources: Sequence[AudioSource] = (), idempotency_key: str | None = None
) -> Call[None]:
    """Return the call of a request for one audio file as a stream of events."""
    headers = {"Accept": EVENT_STREAM} | _key(idempotency_key)
    return Call("POST", f"/v1/{verb}", lambda _: None, _request(verb, fields, sources), headers)


def audios(requests: Sequence[Mapping[str, Any]], idempotency_key: str | None = None) -> Call[list[Audio | ApiError]]:
    """Return the call of a list of requests to generate."""
    content = {"json": [_jsonable(_seeded(request)) for request in requests]}
    headers = {"Accept": "application/json"} | _key(idempotency_key)
    return Call("POST", "/v1/generate", _audios, content, headers)


def encode(sources: Sequence[AudioSource], encoder: str | None) -> Call[list[Encoding]]:
    """Return the call that encodes audio files."""
    content = _content({} if encoder is None else {"encoder": encoder}, sources)
    return Call("POST", "/v1/encode", lambda response: [Encoding(**item) for item in _data(response)], content)


def latents(sources: Sequence[AudioSource], model: str) -> Call[list[Latents]]:
    """Return the call that computes the latents of audio files."""
    content = _content({"encoder": model}, sources)
    return Call("POST", "/v1/encode", lambda response: [Latents(**item) for item in _data(response)], content)


def models() -> Call[list[Model]]:
    """Return the call that lists the models."""
    return Call("GET", "/v1/models", lambda response: [Model(**item) for item in response.json()["models"]])


def create_job(requests: JobRequest | Sequence[JobRequest], idempotency_key: str | None) -> Call[Job]:
    """Return the call that creates a job. The Idempotency-Key, drawn if there is none, keeps it from being doubled."""
    one = isinstance(requests, Mapping)
    bodies = [_jsonable(request) for request in ([requests] if isinstance(requests, Mapping) else requests)]
    return Call("POST", "/v1/jobs", _job, {"json": bodies[0] if one else bodies}, _key(idempotency_key or _new_key()))


def get_job(job_id: str) -> Call[Job]:
    """Return the call that reads a job."""
    return Call("GET", f"/v1/jobs/{_segment(job_id)}", _job)


def list_jobs(limit: int, after: str | None) -> Call[JobPage]:
    """Return the call that lists jobs."""
    params = {"limit": limit} | ({} if after is None else {"after": after})
    return Call("GET", "/v1/jobs", lambda response: JobPage.model_validate_json(response.content), {"params": params})


def job_content(job_id: str, index: int | None) -> Call[bytes]:
    """Return the call that reads the content of a job."""
    content = {} if index is None else {"params": {"index": index}}
    return Call("GET", f"/v1/jobs/{_segment(job_id)}/content", lambda response: response.content, content)


def delete_job(job_id: str) -> Call[None]:
    """Return the call that cancels or deletes a job."""
    return Call("DELETE", f"/v1/jobs/{_segment(job_id)}", lambda _: None)


def _audio(response: httpx.Response) -> Audio:
    headers = response.headers
    seed = headers.get("x-audiodiff-seed")
    return Audio(
        content=response.content,
        media_type=headers["content-type"].partition(";")[0],
        seed=None if seed is None else int(seed),
        model=headers.get("x-audiodiff-model"),
        digest=headers.get("x-audiodiff-digest"),
    )


def _audios(response: httpx.Response) -> list[Audio | ApiError]:
    return [error_of_json(item) if "error" in item else Audio.of_json(item) for item in _data(response)]


def _job(response: httpx.Response) -> Job:
    return Job.model_validate_json(response.content)


def _data(response: httpx.Response) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = response.json()["data"]
    return data


def _seeded(fields: Mapping[str, Any]) -> dict[str, Any]:
    seed = fields.get("seed")
    return {**fields, "seed": secrets.randbelow(SEEDS) if seed is None else seed}


def _request(verb: Verb, fields: Mapping[str, Any], sources: Sequence[AudioSource]) -> dict[str, Any]:
    """Return the content of a request for audio. The route generate takes JSON alone."""
    seeded = _seeded(fields)
    if verb == "generate":
        return {"json": _jsonable({**seeded, "audio": sources} if sources else seeded)}
    return _content(seeded, sources)


def _content(fields: Mapping[str, Any], sources: Sequence[AudioSource]) -> dict[str, Any]:
    """Return JSON, or a form if there are files. Values of a form that are not text are JSON."""
    files = [("audio", _file(source)) for source in sources]
    if "like" in fields:
        files.append(("like", _file(fields["like"])))
    if not files:
        return {"json": dict(fields)}
    texts = {name: value for name, value in fields.items() if name != "like" and value is not None}
    data = {name: value if isinstance(value, str) else json.dumps(value) for name, value in texts.items()}
    return {"data": data, "files": files}


def _jsonable(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request with its audio in base64."""
    uploads = {name: _base64(request[name]) for name in ("audio", "like") if name in request}
    return {**request, **uploads}


def _base64(source: AudioSource | Sequence[AudioSource]) -> str | list[str]:
    if isinstance(source, (bytes, str, os.PathLike)):
        return base64.b64encode(_file(source)[1]).decode()
    return [base64.b64encode(_file(each)[1]).decode() for each in source]


def _file(source: AudioSource) -> tuple[str, bytes]:
    """Return a name for the form, which tells the server nothing, and the content of a file."""
    return "audio", source if isinstance(source, bytes) else Path(source).read_bytes()


def _segment(job_id: str) -> str:
    if not job_id or not all(character.isalnum() or character in "_-" for character in job_id):
        raise ValueError(f"job id {job_id!r}: must be letters, digits, '_' and '-'")
    return job_id


def _key(idempotency_key: str | None) -> dict[str, str]:
    return {} if idempotency_key is None else {IDEMPOTENCY_KEY: idempotency_key}


def _new_key() -> str:
    return uuid.uuid4().hex
