"""Time of the nodes of a cluster, which is what a cluster costs."""

import time

import ray

from audiodiff_platform.cluster.capacity import nodes


class NodeTime:
    """The hours of all live nodes since the creation of this object.

    The number of nodes is read at each call of `hours`, and counts for the time since the call before.
    """

    def __init__(self) -> None:
        self._read_at = time.monotonic()
        self._hours = 0.0

    def hours(self) -> float:
        """Return the sum of the hours of the nodes. Without a cluster, this machine is the only node."""
        now = time.monotonic()
        self._hours += (now - self._read_at) / 3_600 * (len(nodes()) if ray.is_initialized() else 1)
        self._read_at = now
        return self._hours
