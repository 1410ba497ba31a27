"""How far a job of shards is, in lines for a person."""

import time
from collections import Counter
from collections.abc import Mapping

from audiodiff_platform.entry.terminal import duration, say
from audiodiff_platform.work.plan import ShardSize

SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Counts finished shards and says how far the work is, at what rate, and how long the rest will take by the audio in it."""

    def __init__(self, work: str, pending: Mapping[int, ShardSize]) -> None:
        self._work, self._pending = work, pending
        self._began = self._said = time.monotonic()
        self._shards, self._seconds = 0, 0.0
        self._counts: Counter[str] = Counter()

    def finished(self, counts: Mapping[str, int]) -> None:
        """Takes in what the worker of a shard counted (`shard`: which)."""
        self._shards += 1
        self._seconds += self._pending[counts["shard"]].seconds
        self._counts.update({what: count for what, count in counts.items() if what != "shard"})
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES or self._shards == len(self._pending):
            self._said = now
            say(self._line(now - self._began))

    def _line(self, elapsed: float) -> str:
        total = sum(size.seconds for size in self._pending.values())
        left = elapsed * (total - self._seconds) / self._seconds if self._seconds else 0.0
        counts = ", ".join(f"{count:,} {what}" for what, count in self._counts.items())
        rate = self._counts["files"] / elapsed
        return f"{self._work}: {self._shards:,} of {len(self._pending):,} shards, {counts}, {rate:,.1f} files/s, {duration(left)} left"
