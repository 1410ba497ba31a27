"""Use of the server by one request: the API key, what the request reserves of its limits, and what it then costs."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from audiodiff_core.audio.wav_chunks import BEATS_PER_BAR
from audiodiff_core.sampling.requests import RemixRequest
from audiodiff_platform.serve.calls import Audio, Call, ModelFacts
from audiodiff_platform.serve.errors import ApiError, Problem
from audiodiff_platform.serve.limits import Admission, KeyLimits, Refusal

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Usage:
    """Use of the server by one request, as `request.state.usage` of the routes that need a key.

    Args:
        key: The name of the API key.
        limits: The limits of the keys.

    Attributes:
        key: The name of the API key.
    """

    def __init__(self, key: str, limits: KeyLimits) -> None:
        self.key = key
        self._limits = limits
        self._admission: Admission | None = None
        self._audio_s = 0.0
        self._headers: dict[str, str] = {}

    def reserve(self, audio_s: float = 0.0) -> None:
        """Reserve a request and its seconds of audio before any work is done.

        Raises:
            ApiError: A limit of the key is reached, or the audio is longer than the limit of a whole period.
        """
        try:
            outcome = self._limits.admit(self.key, audio_s)
        except ValueError as error:
            raise ApiError(Problem(422, str(error), "audio_limit")) from error
        self._headers = outcome.headers
        if isinstance(outcome, Refusal):
            raise ApiError(Problem(429, outcome.message, "rate_limited", None, outcome.retry_after_s))
        self._admission = outcome

    def charge_reserved(self) -> None:
        """Let the request cost all that it reserved, as its results are made after its end."""
        assert self._admission is not None
        self._audio_s = self._admission.audio_s

    def take_back(self) -> None:
        """Let the request cost nothing, as its results will not be made."""
        self._audio_s = 0.0

    def count(self, outcome: object) -> None:
        """Add the seconds of audio of a result, if the outcome of a call is one."""
        if isinstance(outcome, Audio):
            self._audio_s += outcome.provenance["duration_s"]

    def settle(self) -> None:
        """End the request: what it reserved and did not use is free again."""
        if self._admission is not None:
            self._limits.settle(self._admission, self._audio_s)

    def sending(self, send: Send) -> Send:
        """Return a function that sends the messages of a response, with the x-ratelimit headers.

        The request ends before the last message: a client that has the response can send the next request.
        """

        async def send_and_settle(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and self._headers:
                own = {name for name, _ in message["headers"]}
                added = [(name.lower().encode(), value.encode()) for name, value in self._headers.items()]
                message = {**message, "headers": [*message["headers"], *(pair for pair in added if pair[0] not in own)]}
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.settle()
            await send(message)

        return send_and_settle


def audio_seconds(call: Call, model: ModelFacts, longest_track_s: float) -> float:
    """Return the duration of the result of a call, by what its request states. That of a remix is the longest."""
    request = call.request
    if request.duration_s is not None:
        return request.duration_s
    if request.bars is not None and request.bpm is not None:
        return request.bars * BEATS_PER_BAR * 60 / request.bpm
    window_s = model.duration_s if request.width is None else request.width * model.duration_s / model.width
    return max(window_s, longest_track_s) if isinstance(request, RemixRequest) else window_s
