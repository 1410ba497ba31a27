"""Python client of the server, blocking and asynchronous, which needs neither Ray nor torch.

    from audiodiff_platform.client import Client

    with Client.from_env() as client:
        client.generate(seed=7, steps=50).save("loop.wav")

answers.py       what the server answers with: audio, models, encodings, jobs
fields.py        the fields of requests
errors.py        errors of the server and of the connection
calls.py         calls: requests over HTTP and the parsing of their responses
events.py        server-sent events
retries.py       when a call is repeated, and after which pause
blocking.py      Client
asynchronous.py  AsyncClient
"""

from audiodiff_platform.client.answers import Audio, Encoding, Job, JobPage, Latents, Model
from audiodiff_platform.client.asynchronous import AsyncClient
from audiodiff_platform.client.blocking import Client
from audiodiff_platform.client.errors import (
    ApiError,
    AudiodiffError,
    AuthenticationError,
    ConflictError,
    ConnectionFailedError,
    InvalidRequestError,
    JobFailedError,
    NotFoundError,
    RateLimitError,
    ServerError,
    TimedOutError,
    TooLargeError,
    UnavailableError,
)
from audiodiff_platform.client.events import Event
from audiodiff_platform.client.retries import Retries

__all__ = [
    "ApiError",
    "AsyncClient",
    "Audio",
    "AudiodiffError",
    "AuthenticationError",
    "Client",
    "ConflictError",
    "ConnectionFailedError",
    "Encoding",
    "Event",
    "InvalidRequestError",
    "Job",
    "JobFailedError",
    "JobPage",
    "Latents",
    "Model",
    "NotFoundError",
    "RateLimitError",
    "Retries",
    "ServerError",
    "TimedOutError",
    "TooLargeError",
    "UnavailableError",
]
