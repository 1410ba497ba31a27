"""Limits of each API key: requests per minute, concurrent requests, and seconds of audio per minute and per hour.

Rates are limited by token buckets: a bucket holds at most the amount of one period, and refills evenly. The seconds of
audio are reserved before a generation and settled after it, so that concurrent requests cannot exceed the limit
together, and a failed request costs none.

One process counts all requests: with limits, the ingress has one replica. Counts start anew with the replica.
"""

import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

MINUTE_S, HOUR_S = 60.0, 3_600.0
REQUESTS, CONCURRENT = "requests", "concurrent-requests"
AUDIO_PER_MINUTE, AUDIO_PER_HOUR = "audio-seconds-minute", "audio-seconds-hour"
RETRY_CONCURRENT_S = 1  # when a running request ends is not known
LARGE_NUMBER_OF_KEYS = 1_000


@dataclass(frozen=True)
class Limits:
    """Limits of each key. None is no limit.

    Attributes:
        requests_per_minute: The number of requests per minute.
        concurrent_requests: The number of requests at a time.
        audio_s_per_minute: The seconds of audio per minute.
        audio_s_per_hour: The seconds of audio per hour.
    """

    requests_per_minute: float | None = None
    concurrent_requests: int | None = None
    audio_s_per_minute: float | None = None
    audio_s_per_hour: float | None = None

    @property
    def is_any(self) -> bool:
        """True if there is a limit."""
        return any(value is not None for value in vars(self).values())

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} {value}: must be above 0; omit it for no limit")
        if self.requests_per_minute is not None and self.requests_per_minute < 1:
            raise ValueError(f"requests_per_minute {self.requests_per_minute}: must be 1 or more")


@dataclass(frozen=True)
class Refusal:
    """A request that exceeds a limit of its key now. The server answers with status 429.

    Attributes:
        limit: The name of the limit, as in the response headers.
        message: What was exceeded, for the client.
        retry_after_s: The whole seconds after which the request may be admitted.
        headers: The Retry-After header and the x-ratelimit headers.
    """

    limit: str
    message: str
    retry_after_s: int
    headers: dict[str, str]


@dataclass(frozen=True)
class Admission:
    """A request that its key may make now, which must be settled when it ends.

    Attributes:
        key: The name of the key.
        audio_s: The reserved seconds of audio.
        headers: The x-ratelimit headers.
        id: A unique name of the admission.
    """

    key: str
    audio_s: float
    headers: dict[str, str]
    id: str


class KeyLimits:
    """The limits of all keys in one process. The methods must be called from one thread.

    A key that was not used for an hour takes no memory once there are many keys.

    Args:
        limits: The limits of each key.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._keys: dict[str, _Key] = {}

    def admit(self, key: str, audio_s: float) -> Admission | Refusal:
        """Reserve a request and its seconds of audio.

        Args:
            key: The name of the key.
            audio_s: The seconds of audio that the request can result in at most.

        Returns:
            An admission, which must be given to `settle` when the request ends in any way, or a refusal.

        Raises:
            ValueError: The request is longer than a whole period allows, so that it can never be admitted.
        """
        state = self._state(key)
        now = self._clock()
        for bucket in state.buckets:
            if bucket.cost(audio_s) > bucket.limit:
                raise ValueError(
                    f"{audio_s:,.1f} s of audio exceed the limit of {bucket.limit:,.1f} s per {bucket.period_s:.0f} s "
                    "of this API key: ask for less audio at a time"
                )
        most = self._limits.concurrent_requests
        if most is not None and len(state.running) >= most:
            message = f"{len(state.running)} requests of this API key are running, the limit is {most}: wait for one"
            return self._refusal(state, CONCURRENT, message, RETRY_CONCURRENT_S)
        waits = {bucket.name: bucket.wait_s(bucket.cost(audio_s), now) for bucket in state.buckets}
        if any(waits.values()):
            name = max(waits, key=lambda name: waits[name])
            retry_after_s = max(1, _whole_seconds(waits[name]))
            message = f"the limit {name} of this API key is reached: wait {retry_after_s} s"
            return self._refusal(state, name, message, retry_after_s)
        for bucket in state.buckets:
            bucket.take(bucket.cost(audio_s), now)
        number = uuid.uuid4().hex
        state.running.add(number)
        return Admission(key, audio_s, self._headers(state), number)

    def settle(self, admission: Admission, audio_s: float) -> None:
        """End a request and charge the audio that it resulted in. Later calls for one admission have no effect.

        Args:
            admission: The admission of the request.
            audio_s: The seconds of audio, 0 for a request that failed. More than was reserved delays later requests.
        """
        state = self._keys.get(admission.key)
        if state is None or admission.id not in state.running:
            return
        state.running.remove(admission.id)
        now = self._clock()
        for bucket in state.buckets:
            if bucket.counts_audio:
                bucket.take(audio_s - admission.audio_s, now)

    def _state(self, key: str) -> "_Key":
        if key not in self._keys:
            if len(self._keys) >= LARGE_NUMBER_OF_KEYS:
                now = self._clock()
                self._keys = {name: state for name, state in self._keys.items() if not state.is_idle(now)}
            self._keys[key] = _Key(_buckets(self._limits, self._clock()))
        return self._keys[key]

    def _refusal(self, state: "_Key", limit: str, message: str, retry_after_s: int) -> Refusal:
        headers = self._headers(state) | {"Retry-After": str(retry_after_s)}
        return Refusal(limit, message, retry_after_s, headers)

    def _headers(self, state: "_Key") -> dict[str, str]:
        """Return the limit, the remaining amount and the time until all of it remains, as OpenAI's API names them."""
        now = self._clock()
        headers: dict[str, str] = {}
        for bucket in state.buckets:
            headers[f"x-ratelimit-limit-{bucket.name}"] = f"{bucket.limit:g}"
            headers[f"x-ratelimit-remaining-{bucket.name}"] = str(max(0, math.floor(bucket.level(now))))
            headers[f"x-ratelimit-reset-{bucket.name}"] = f"{_whole_seconds(bucket.wait_s(bucket.limit, now))}s"
        if (most := self._limits.concurrent_requests) is not None:
            headers[f"x-ratelimit-limit-{CONCURRENT}"] = str(most)
            headers[f"x-ratelimit-remaining-{CONCURRENT}"] = str(most - len(state.running))
        return headers


@dataclass
class _Bucket:
    """A token bucket. Its level is below 0 after more was taken than was there."""

    name: str
    limit: float
    period_s: float
    amount: float
    at: float
    counts_audio: bool

    def cost(self, audio_s: float) -> float:
        return audio_s if self.counts_audio else 1.0

    def level(self, now: float) -> float:
        return min(self.limit, self.amount + (now - self.at) * self.limit / self.period_s)

    def wait_s(self, amount: float, now: float) -> float:
        """Return the time until the bucket holds `amount`, without the rounding errors of its level."""
        missing = amount - self.level(now)
        return missing * self.period_s / self.limit if missing > 1e-9 * self.limit else 0.0

    def take(self, amount: float, now: float) -> None:
        self.amount, self.at = min(self.limit, self.level(now) - amount), now


@dataclass
class _Key:
    """The state of a key: its buckets, and the ids of its running requests."""

    buckets: list[_Bucket]
    running: set[str] = field(default_factory=set)

    def is_idle(self, now: float) -> bool:
        return not self.running and all(bucket.wait_s(bucket.limit, now) == 0 for bucket in self.buckets)


def _buckets(limits: Limits, now: float) -> list[_Bucket]:
    kinds = (
        (REQUESTS, limits.requests_per_minute, MINUTE_S, False),
        (AUDIO_PER_MINUTE, limits.audio_s_per_minute, MINUTE_S, True),
        (AUDIO_PER_HOUR, limits.audio_s_per_hour, HOUR_S, True),
    )
    return [_Bucket(name, limit, period_s, limit, now, audio) for name, limit, period_s, audio in kinds if limit]


def _whole_seconds(seconds: float) -> int:
    """Round up, except for rounding errors."""
    return math.ceil(round(seconds, 6))
