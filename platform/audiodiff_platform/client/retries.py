"""Repetition of calls: which outcomes are repeated, and after which pause.

A request for audio states its seed, so that its result is always the same, and the creation of a job has an
Idempotency-Key. A call is repeated after a broken connection, and after status 429 and 503, which a server sends before
it does any work. A deletion is not repeated once it was sent: it cancels a running job, and its repetition deletes the
job. With an Idempotency-Key, a call is also repeated after status 409, while the first request still runs. A response
that did not arrive in time is not waited for again.
"""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
REFUSED = frozenset({429, 503})


@dataclass(frozen=True)
class Retries:
    """Limits of the repetition of a call.

    Attributes:
        most: The maximum number of repetitions.
        longest_wait_s: The longest Retry-After that is waited for, in seconds. A longer one is an error at once.
    """

    most: int = 4
    longest_wait_s: float = 60.0

    def pause_s(
        self, outcome: httpx.Response | httpx.TransportError, retry: int, *, is_keyed: bool, is_deletion: bool
    ) -> float | None:
        """Return the pause before a repetition, or None if the outcome is final.

        Args:
            outcome: The response, or the error of the connection.
            retry: The number of repetitions so far.
            is_keyed: Whether the call has an Idempotency-Key.
            is_deletion: Whether a repetition after a success would do more than the call.
        """
        if retry >= self.most:
            return None
        backoff_s: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**retry) * random.uniform(0.5, 1)  # noqa: S311
        if isinstance(outcome, httpx.TransportError):
            is_unsent = isinstance(outcome, (httpx.ConnectError, httpx.ConnectTimeout))
            is_late = isinstance(outcome, httpx.TimeoutException) and not isinstance(outcome, httpx.ConnectTimeout)
            is_wrong = isinstance(outcome, (httpx.UnsupportedProtocol, httpx.LocalProtocolError))
            return None if is_late or is_wrong or (is_deletion and not is_unsent) else backoff_s
        if outcome.status_code not in REFUSED and not (outcome.status_code == 409 and is_keyed):
            return None
        wait_s = retry_after_s(outcome.headers)
        if wait_s is None:
            return backoff_s
        # Clients that were refused together do not return together.
        return None if wait_s > self.longest_wait_s else wait_s * random.uniform(1, 1.1)  # noqa: S311


def retry_after_s(headers: httpx.Headers) -> float | None:
    """Return the seconds of a Retry-After header, which states seconds or a date."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
