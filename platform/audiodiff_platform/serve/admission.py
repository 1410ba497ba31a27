"""Estimate of the wait of a request, in network calls, from the requests before it."""

import heapq
from collections.abc import Iterable

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
