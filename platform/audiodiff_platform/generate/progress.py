"""Progress lines of generate, and the figures of its run."""

from collections.abc import Mapping

from audiodiff_platform.cluster.node_time import NodeTime
from audiodiff_platform.entry.terminal import duration
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

    def add(self, pending: Mapping[int, ShardSize]) -> None:
        """Add further shards to run."""
        self._pending = {**self._pending, **pending}
        self._loops += sum(size.sources for size in pending.values())

    def finished(self, counts: Mapping[str, float]) -> None:
        """See `Progress.finished`. The counts are those of `shard_counts`."""
        self._node_time.hours()
        super().finished(counts)

    def figures(self) -> dict[str, float | None]:
        """Return the figures of the run so far, as JSON values.

        `loops_per_minute` (`candidates_per_minute` for candidates) is the rate since the workers were started.
        `sampler_busy` is the share of the workers' time, from the first to the last shard of each, that they spent in
        the sampler; None if no shard was run. `cost` is there if a price is known.
        """
        loops, worked_s = self._counts["files"], self._counts["seconds"]
        figures: dict[str, float | None] = {
            f"{self._unit}_per_minute": round(60 * loops / self.elapsed, 1),
            "sampler_busy": round(self._counts["sampling_s"] / worked_s, 3) if worked_s else None,
        }
        if self._node_price is not None:
            figures["cost"] = round(self._node_price * self._node_time.hours(), 4)
        return figures

    def closing_line(self) -> str:
        """Return the line at the end of the run."""
        busy = self.figures()["sampler_busy"]
        share = "" if busy is None else f", the sampler was busy {busy:.0%} of the workers' time"
        return f"{self._unit}: {self._rates(self.elapsed)} in {duration(self.elapsed)}{share}{self._cost()}"

    def _line(self, elapsed: float) -> str:
        done = self._counts["files"] + self._counts["failed"]
        failed = f", {self._counts['failed']:,} failed" if self._counts["failed"] else ""
        left = duration(self._seconds_left(elapsed))
        return f"{self._unit}: {done:,} of {self._loops:,}{failed}, {self._rates(elapsed)}, {left} left{self._cost()}"

    def _rates(self, elapsed: float) -> str:
        rate, audio_s = 60 * self._counts["files"] / elapsed, self._counts["audio_s"]
        return f"{rate:,.1f} {self._unit}/min, {audio_s:,.0f} s of audio ({audio_s / elapsed:,.1f} s per second)"

    def _cost(self) -> str:
        cost = self.figures().get("cost")
        return "" if cost is None else f", cost {cost:,.2f}"
