"""Progress lines of generate, and the figures of its run."""

import time
from collections.abc import Mapping

from audiodiff_platform.cluster.node_time import NodeTime
from audiodiff_platform.entry.terminal import duration, say
from audiodiff_platform.work.plan import ShardSize
from audiodiff_platform.work.progress import Progress


class LoopProgress(Progress):
    """A counter of finished shards that prints loops, seconds of audio, their rates, the time left and the cost so far.

    Args:
        unit: Name of the loops, "loops" or "candidates".
        pending: The shards to run.
        node_price: Price of a node per hour, or None to state no cost.
    """

    def __init__(self, unit: str, pending: Mapping[int, ShardSize], node_price: float | None) -> None:
        super().__init__(unit, pending)
        self._loops = sum(size.sources for size in pending.values())
        self._node_price, self._node_time = node_price, NodeTime()
        self._ended: float | None = None

    def add(self, pending: Mapping[int, ShardSize]) -> None:
        """Add further shards to run."""
        self._pending = {**self._pending, **pending}
        self._loops += sum(size.sources for size in pending.values())

    def finished(self, counts: Mapping[str, float]) -> None:
        """See `Progress.finished`. The counts are those of `shard_counts`."""
        self._node_time.hours()
        super().finished(counts)

    def end(self) -> None:
        """End the time of the rates, because all shards are finished."""
        self._ended = time.monotonic()

    def close(self) -> dict[str, float | None]:
        """Print the line at the end of the job, if shards were run, and return the figures of the run as JSON values.

        `loops_per_minute` (`candidates_per_minute` for candidates) is the rate from the start of the workers to the end
        of their last shard. `sampler_busy` is the share of the workers' time, from the first to the last shard of each,
        that they spent in the sampler; None if no shard was run. `cost` is there if a price is known, and includes the
        time of the last files.
        """
        loops, worked_s = self._counts["files"], self._counts["seconds"]
        elapsed = (self._ended or time.monotonic()) - self._began
        busy = round(self._counts["sampling_s"] / worked_s, 3) if worked_s else None
        figures = {f"{self._unit}_per_minute": round(60 * loops / elapsed, 1), "sampler_busy": busy}
        cost = self._cost()
        if cost is not None:
            figures["cost"] = round(cost, 4)
        if self._ended is not None:
            share = "" if busy is None else f", the sampler was busy {busy:.0%} of the workers' time"
            say(f"{self._unit}: {self._rates(elapsed)} in {duration(elapsed)}{share}{_stated(cost)}")
        return figures

    def _line(self, elapsed: float) -> str:
        done = self._counts["files"] + self._counts["failed"]
        failed = f", {self._counts['failed']:,} failed" if self._counts["failed"] else ""
        left = f"{duration(self._seconds_left(elapsed))} left{_stated(self._cost())}"
        return f"{self._unit}: {done:,} of {self._loops:,}{failed}, {self._rates(elapsed)}, {left}"

    def _rates(self, elapsed: float) -> str:
        rate, audio_s = 60 * self._counts["files"] / elapsed, self._counts["audio_s"]
        return f"{rate:,.1f} {self._unit}/min, {audio_s:,.0f} s of audio ({audio_s / elapsed:,.1f} s per second)"

    def _cost(self) -> float | None:
        """Return the cost so far, or None without a price."""
        return None if self._node_price is None else self._node_price * self._node_time.hours()


def _stated(cost: float | None) -> str:
    return "" if cost is None else f", cost {cost:,.2f}"
