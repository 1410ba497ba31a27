"""Refusals of full replicas, which the ingress repeats."""

import time
from collections.abc import Callable

from audiodiff_platform.serve.errors import Problem

QUEUE_FULL = "queue_full"
"""Code of the problem of a request that found no room."""
REFUSED_FOR_S = 0.1
"""Time for which an ingress repeats the refusal of a full replica."""


class RecentRefusals:
    """Refusals of full replicas, which an ingress repeats for a moment without a call to a replica.

    Under overload most requests are refused, and a call for each of them takes time from the sampling of the others.
    REFUSED_FOR_S is short beside the time in which a replica works off its queue, so that the queue does not run empty.
    Ray Serve sends a request to the less busy of two replicas, so that a full one means that there is hardly room.

    Args:
        clock: Function that returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused = dict[str, tuple[float, Problem]]()

    def record(self, model: str, problem: Problem) -> None:
        """Record the end of a request to a model. Only the problem of a full queue is a refusal."""
        if problem.code == QUEUE_FULL:
            self._refused[model] = self._clock(), problem

    def of(self, model: str) -> Problem | None:
        """Return the refusal of the last REFUSED_FOR_S, or None."""
        at, problem = self._refused.get(model, (float("-inf"), None))
        return problem if self._clock() - at < REFUSED_FOR_S else None
