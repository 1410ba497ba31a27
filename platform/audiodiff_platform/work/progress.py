"""Progress lines of sharded jobs."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from audiodiff_platform.entry.terminal import duration, say
from audiodiff_platform.work.plan import ShardSize

LINE_INTERVAL_S = 2.0


class Progress:
    """A counter of finished shards that prints progress, throughput and the estimated time left.

    The time left is estimated from the seconds of audio in the finished and in the remaining shards.

    Args:
        unit: Name of the work at the start of each line, such as "slices".
        pending: The shards to run.
    """

    def __init__(self, unit: str, pending: Mapping[int, ShardSize]) -> None:
        self._unit, self._pending = unit, pending
        self._began = self._last_line = time.monotonic()
        self._shards, self._seconds = 0, 0.0
        self._counts: Counter[str] = Counter()

    def finished(self, counts: Mapping[str, Any]) -> None:
        """Add the counts of a finished shard, and print a line if one is due.

        Args:
            counts: Counts of the shard by name, and the number of the shard as `shard`.
        """
        self._shards += 1
        self._seconds += self._pending[counts["shard"]].seconds
        self._counts.update({name: count for name, count in counts.items() if name != "shard"})
        now = time.monotonic()
        if now - self._last_line >= LINE_INTERVAL_S or self._shards == len(self._pending):
            self._last_line = now
            say(self._line(now - self._began))

    def _seconds_left(self, elapsed: float) -> float:
        total = sum(size.seconds for size in self._pending.values())
        return elapsed * (total - self._seconds) / self._seconds if self._seconds else 0.0

    def _line(self, elapsed: float) -> str:
        counts = ", ".join(f"{count:,} {name}" for name, count in self._counts.items())
        name = "files" if "files" in self._counts else next(iter(self._counts), "files")
        shards = f"{self._shards:,} of {len(self._pending):,} shards"
        left = duration(self._seconds_left(elapsed))
        return f"{self._unit}: {shards}, {counts}, {self._counts[name] / elapsed:,.1f} {name}/s, {left} left"
