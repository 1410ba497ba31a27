"""Admission of requests: an estimate of their wait, in network calls, and the length of the queue."""

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable

from audiodiff_core.diffusion.methods import METHODS
from audiodiff_core.pipeline import Geometry
from audiodiff_core.sampling.requests import (
    DEFAULT_STRENGTH,
    ExtendRequest,
    InterpolateRequest,
    InvertRequest,
    RemixRequest,
    Request,
    VaryRequest,
)

OVERLOAD_AFTER_S = 2.0
"""Time for which requests are refused until the queue counts as overloaded."""
OVERLOAD_ENDS_S = 2.0
"""Time without a refusal after which the queue no longer counts as overloaded."""
OVERLOAD_RATE = 2.0
"""Requests that arrive, as a multiple of those that a full batch answers, from which the queue counts as overloaded."""
BURST_S = 0.1
"""Time within which requests count as a burst."""


class QueueLimit:
    """Length of a queue, in batch slots.

    A burst may fill the whole queue. Under an overload, a full queue keeps the batch no busier than a short one, and
    only delays every request: the queue then takes one batch. Requests that are already in the queue stay. This is the
    distinction between a good and a standing queue of Nichols and Jacobson, "Controlling Queue Delay" (2012).

    An overload begins when requests were refused for OVERLOAD_AFTER_S. It begins at once for requests that find a batch
    before them, if OVERLOAD_RATE times as many requests arrived as a full batch answers. Those of the last BURST_S do
    not count. Otherwise the queue of a burst would be full by the time that an overload can be told from a burst.

    Args:
        burst_slots: Slots of the queue.
        batch_slots: Slots of a batch.
        clock: Function that returns the time in seconds.
    """

    def __init__(self, burst_slots: int, batch_slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst_slots, self._standing_slots, self._clock = burst_slots, min(burst_slots, batch_slots), clock
        self._most_arrivals = OVERLOAD_RATE * batch_slots
        self._arrivals, self._batch_s = deque[tuple[float, int]](), 0.0
        self._first_refusal = self._last_refusal = float("-inf")

    def arrived(self, slots: int, batch_s: float) -> None:
        """Record the arrival of a request.

        Args:
            slots: Slots of the request.
            batch_s: Time in which a full batch of such requests is answered, in seconds.
        """
        self._arrivals.append((self._clock(), slots))
        self._batch_s = batch_s

    def refused(self) -> None:
        """Record that a request found no room."""
        now = self._clock()
        if self._is_outpaced(now):
            self._first_refusal = now - OVERLOAD_AFTER_S
        elif now - self._last_refusal > OVERLOAD_ENDS_S:
            self._first_refusal = now
        self._last_refusal = now

    @property
    def slots(self) -> int:
        """Slots of the requests that may wait now."""
        now = self._clock()
        lasts = now - self._last_refusal <= OVERLOAD_ENDS_S and now - self._first_refusal >= OVERLOAD_AFTER_S
        return self._standing_slots if lasts or self._is_outpaced(now) else self._burst_slots

    def _is_outpaced(self, now: float) -> bool:
        """Return True if many more requests arrived in the last `batch_s`, but for BURST_S, than a batch answers."""
        while self._arrivals and self._arrivals[0][0] < now - self._batch_s:
            self._arrivals.popleft()
        return sum(slots for at, slots in self._arrivals if at <= now - BURST_S) >= self._most_arrivals


def slots_of(request: Request) -> int:
    """Return the batch slots that a resolved request takes."""
    return 1 if request.guidance_scale == 1 else 2


def network_calls(request: Request, geometry: Geometry) -> int:
    """Estimate the network calls of a resolved request, in its slots. A remix counts as one window."""
    assert request.steps is not None
    assert request.scheduler is not None
    calls = request.steps * METHODS[request.scheduler].calls_per_step
    match request:
        case VaryRequest() | RemixRequest():
            skipped = request.start_step if request.start_step is not None else 0
            share = (request.strength or DEFAULT_STRENGTH) if request.start_step is None else 1.0
            return max(1, round(calls * (share - skipped / request.steps)))
        case ExtendRequest():
            samples = geometry.samples(request)
            seconds = request.duration_s if samples is None else samples / geometry.mel.sample_rate
            window_s = geometry.duration_s(geometry.width(request))
            assert seconds is not None
            return calls * max(1, round(seconds / window_s / (1 - request.overlap)))
        case InvertRequest():
            return calls * (2 + request.refinements)
        case InterpolateRequest():
            return calls * (1 + len(request.sources or ()) * (1 + request.refinements))
    return calls


def calls_until_a_slot(slots: int, running: Iterable[tuple[int, int]], waiting: Iterable[tuple[int, int]]) -> int:
    """Return the number of network calls until a new request gets a slot.

    Args:
        slots: Slots of the batch.
        running: Network calls to come and slots of each request in the batch.
        waiting: Network calls and slots of each request before the new one.
    """
    busy = [calls for calls, own in running for _ in range(own)]
    free_at = [0] * max(0, slots - len(busy)) + busy
    heapq.heapify(free_at)
    for calls, own in waiting:
        taken = [heapq.heappop(free_at) for _ in range(min(own, len(free_at)))]
        for _ in taken:
            heapq.heappush(free_at, max(taken) + calls)
    return free_at[0]
