"""Client whose calls block."""

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, Self, TypeVar, Unpack

import httpx

from audiodiff_platform.client import calls
from audiodiff_platform.client.answers import Audio, Encoding, Job, JobPage, Latents, Model
from audiodiff_platform.client.calls import Call
from audiodiff_platform.client.errors import ApiError, ConnectionFailedError, JobFailedError, TimedOutError
from audiodiff_platform.client.events import DONE, Event, EventParser
from audiodiff_platform.client.fields import (
    AudioSource,
    ExtendFields,
    GenerateFields,
    InpaintFields,
    InterpolateFields,
    JobRequest,
    RemixFields,
    VaryFields,
    Verb,
)
from audiodiff_platform.client.retries import Retries

T = TypeVar("T")


class Client:
    """A client of a server, with one pool of connections. Threads may share it.

    Args:
        base_url: The URL of the server.
        api_key: The API key, or None for a server without keys.
        timeout_s: The longest wait for a part of a response in seconds.
        retries: The limits of the repetition of calls.
    """

    def __init__(
        self,
        base_url: str = calls.DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout_s: float = calls.TIMEOUT_S,
        retries: Retries = Retries(),  # noqa: B008 immutable
    ) -> None:
        self._http = httpx.Client(**calls.connection(base_url, api_key, timeout_s))
        self._retries = retries
        self.jobs = JobCalls(self._send)

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """Return a client for AUDIODIFF_URL (by default this machine) with the key AUDIODIFF_API_KEY."""
        return cls(*calls.from_environment(), **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(self, *, idempotency_key: str | None = None, **fields: Unpack[GenerateFields]) -> Audio:
        """Generate a loop.

        Args:
            idempotency_key: A key under which the server stores the response.
            **fields: The fields of the request. A missing seed is random.

        Raises:
            ApiError: The server refused the request, or failed.
            ConnectionFailedError: The server cannot be reached.
            TimedOutError: The server did not answer in time.
        """
        return self._send(calls.audio("generate", fields, idempotency_key=idempotency_key))

    def generate_all(
        self, requests: Sequence[GenerateFields], *, idempotency_key: str | None = None
    ) -> list[Audio | ApiError]:
        """Generate a loop for each request, in one call. A failed request has its error in place of its audio."""
        return self._send(calls.audios(requests, idempotency_key))

    def variations(self, audio: AudioSource, **fields: Unpack[VaryFields]) -> Audio:
        """Generate a variation of a slice of an audio file."""
        return self._send(calls.audio("variations", fields, [audio]))

    def inpaint(self, audio: AudioSource, **fields: Unpack[InpaintFields]) -> Audio:
        """Regenerate spans of a slice of an audio file."""
        return self._send(calls.audio("inpaint", fields, [audio]))

    def extend(self, audio: AudioSource | None = None, **fields: Unpack[ExtendFields]) -> Audio:
        """Generate a long loop, which begins with an audio file if there is one."""
        return self._send(calls.audio("extend", fields, [] if audio is None else [audio]))

    def remix(self, audio: AudioSource, **fields: Unpack[RemixFields]) -> Audio:
        """Generate a variation of a whole track."""
        return self._send(calls.audio("remix", fields, [audio]))

    def interpolate(self, audios: Sequence[AudioSource] = (), **fields: Unpack[InterpolateFields]) -> Audio:
        """Generate a loop on the way through several audio files or seeds."""
        return self._send(calls.audio("interpolate", fields, audios))

    def events(self, verb: Verb, audios: Sequence[AudioSource] = (), **fields: Any) -> Generator[Event]:
        """Generate a loop, and yield progress, previews and the audio as they come.

        The server stops the generation if the iterator is closed. A stream that has begun is not repeated.

        Args:
            verb: The kind of the request.
            audios: The audio files.
            **fields: The fields of the request.
        """
        call = calls.events(verb, fields, audios)
        response = self._outcome(call, stream=True)
        if not isinstance(response, httpx.Response) or not response.is_success:
            call.result(response)
            return
        parser = EventParser()
        with contextlib.closing(response):
            try:
                for chunk in response.iter_bytes():
                    for event in parser.feed(chunk):
                        yield event
                        if event.type == DONE:
                            return
            except httpx.TransportError as error:
                call.result(error)
        raise ConnectionFailedError(f"{call.method} {call.path}: the stream ended before its result")

    def encode(self, audios: Sequence[AudioSource], *, encoder: str | None = None) -> list[Encoding]:
        """Return the encoding of each audio file."""
        return self._send(calls.encode(audios, encoder))

    def latents(self, audios: Sequence[AudioSource], *, model: str) -> list[Latents]:
        """Return the latents of each audio file by a served latent model."""
        return self._send(calls.latents(audios, model))

    def models(self) -> list[Model]:
        """Return the served models."""
        return self._send(calls.models())

    def _send(self, call: Call[T]) -> T:
        return call.result(self._outcome(call))

    def _outcome(self, call: Call[Any], *, stream: bool = False) -> httpx.Response | httpx.TransportError:
        """Return the final outcome of a call. A stream that failed is read."""
        for retry in itertools.count():
            outcome = self._attempt(call, stream)
            pause_s = self._retries.pause_s(outcome, retry, is_keyed=call.is_keyed, is_deletion=call.is_deletion)
            if pause_s is None:
                break
            time.sleep(pause_s)
        return outcome

    def _attempt(self, call: Call[Any], stream: bool) -> httpx.Response | httpx.TransportError:
        request = self._http.build_request(call.method, call.path, headers=call.headers, **call.content)
        try:
            response = self._http.send(request, stream=stream)
            if not response.is_success:
                response.read()
        except httpx.TransportError as error:
            return error
        return response


class Send(Protocol):
    """A function that makes a call."""

    def __call__(self, call: Call[T], /) -> T:
        """Return the answer of a call."""
        ...


class JobCalls:
    """Calls of jobs, as `client.jobs`.

    Args:
        send: The function that makes a call.
    """

    def __init__(self, send: Send) -> None:
        self._send = send

    def create(self, requests: JobRequest | Sequence[JobRequest], *, idempotency_key: str | None = None) -> Job:
        """Create a job of a request or a list of requests.

        Args:
            requests: A request, or a list. `audio` is the content or the path of a file, or a list of them.
            idempotency_key: The key that keeps a repetition from creating another job. None: a new key.
        """
        return self._send(calls.create_job(requests, idempotency_key))

    def get(self, job_id: str) -> Job:
        """Return a job."""
        return self._send(calls.get_job(job_id))

    def list(self, limit: int = 20, after: str | None = None) -> JobPage:
        """Return the jobs of the API key, the newest first.

        Args:
            limit: The maximum number of jobs.
            after: The id of the last job of the previous page.
        """
        return self._send(calls.list_jobs(limit, after))

    def wait(
        self,
        job_id: str,
        *,
        poll_s: float = calls.POLL_S,
        timeout_s: float | None = None,
        on_progress: Callable[[Job], object] | None = None,
    ) -> Job:
        """Wait until a job has completed, and return the job.

        Args:
            job_id: The id of the job.
            poll_s: The time between two reads of the job in seconds.
            timeout_s: The longest time to wait in seconds, or None.
            on_progress: A function that is called with the job after each read.

        Raises:
            JobFailedError: The job failed or was cancelled.
            TimedOutError: The job has not ended in time. It continues to run.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            job = self.get(job_id)
            if on_progress is not None:
                on_progress(job)
            if job.status == "completed":
                return job
            if job.has_ended:
                raise JobFailedError(job)
            if deadline is not None and time.monotonic() + poll_s > deadline:
                raise TimedOutError(f"job {job_id} is {job.status} after {timeout_s:g} s")
            time.sleep(poll_s)

    def content(self, job_id: str, index: int | None = None) -> bytes:
        """Return the result of a job: the audio of one request; for a list, a zip file, or the audio at `index`."""
        return self._send(calls.job_content(job_id, index))

    def delete(self, job_id: str) -> None:
        """Delete a job with its results. A job that has not ended is cancelled."""
        self._send(calls.delete_job(job_id))
