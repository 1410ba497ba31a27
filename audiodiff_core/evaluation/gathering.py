"""Statistics and a sample of all items of one side of a comparison, computed from parts in any order.

A side is a set of items that is too large for memory. It is processed in parts:

1. A worker embeds the items of a part and keeps the items that can be in the sample (`Part.of`).
2. A `Gathering` receives the parts in any order. It merges their statistics and keeps the items that can still be in
   the sample.
3. `Gathering.gathered` returns the statistics and the sample.

The sample consists of the items with the lowest ranks. The rank of an item is a hash of its track and its number within
the track. The sample therefore does not depend on the parts or on their order. All items of a side are equally likely
to be in the sample, for tracks of any length. Metrics that compare tracks use only the items in the sample and the
tracks of these items.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from audiodiff_core.evaluation.features import Features
from audiodiff_core.evaluation.frechet import FeatureStatistics

MAX_SAMPLE_ITEMS = 10_000
"""Largest number of items in the sample of a side. The time of metrics of pairs grows with the square."""

Ranks = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """Features of items, and their tracks.

    Args:
        features: Features of shape (n, d).
        tracks: Name of the track of each item.
    """

    features: Features
    tracks: Sequence[str]

    def __post_init__(self) -> None:
        assert len(self.features) == len(self.tracks)

    def __len__(self) -> int:
        return len(self.tracks)

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """Number of the track of each item, of shape (n,), from 0 in the order of the names."""
        return np.unique(np.asarray(self.tracks), return_inverse=True)[1]

    def at(self, rows: Rows) -> "Items":
        """Return the items at `rows`."""
        return Items(self.features[rows], [self.tracks[row] for row in rows])


@dataclass(frozen=True)
class Part:
    """Part of a side. All items of a track are in one part.

    Args:
        items: Items of the part that can be in the sample, in their order in the part.
        ranks: Rank of each of `items`, of shape (n,).
        tracks: Number of tracks of the part.
        left_out: Statistics of the items of the part that are not in `items`. None if `items` holds all items.
    """

    items: Items
    ranks: Ranks
    tracks: int
    left_out: FeatureStatistics | None = None

    @classmethod
    def of(cls, items: Items, ranks: Ranks, max_items: int) -> Self:
        """Create a part from all its items.

        Args:
            items: All items of the part.
            ranks: Rank of each item, of shape (n,).
            max_items: Number of items in the sample. Only the items of the lowest ranks are kept.
        """
        kept, tracks = _lowest(ranks, max_items), len(set(items.tracks))
        if len(kept) == len(items):
            return cls(items, ranks, tracks)
        return cls(items.at(kept), ranks[kept], tracks, FeatureStatistics.of(np.delete(items.features, kept, axis=0)))

    def __len__(self) -> int:
        return len(self.items) + (self.left_out.count if self.left_out else 0)

    @property
    def statistics(self) -> FeatureStatistics | None:
        """Statistics of all items of the part; None if it has no items."""
        return _merged(FeatureStatistics.of(self.items.features) if len(self.items) else None, self.left_out)


@dataclass(frozen=True)
class Gathered:
    """Side of a comparison.

    Args:
        statistics: Statistics of all items.
        tracks: Number of tracks of all items.
        sample: Sample of the items.
    """

    statistics: FeatureStatistics
    tracks: int
    sample: Items


class Gathering:
    """Accumulator of the parts of a side, in any order.

    Args:
        max_items: Number of items in the sample. The accumulator holds at most twice as many items.

    Attributes:
        tracks: Number of tracks of the parts.
        rows_held: Number of items in memory.
    """

    def __init__(self, max_items: int) -> None:
        self.max_items = max_items
        self.tracks = 0
        self.rows_held = 0
        self._parts: dict[int, tuple[Items, Ranks]] = {}
        self._max_rank = np.iinfo(np.uint64).max  # largest rank that can be in the sample
        self._statistics: dict[tuple[int, int], FeatureStatistics | None] = {}

    def add(self, number: int, part: Part) -> None:
        """Add a part. The parts of a side are numbered from 0."""
        assert len(part.items) <= self.max_items
        self.tracks += part.tracks
        self._merge(number, part.statistics)
        if self.rows_held + len(part.items) > 2 * self.max_items:
            self._prune()
        rows = np.flatnonzero(part.ranks <= self._max_rank)
        if len(rows):
            self._parts[number] = part.items.at(rows), part.ranks[rows]
            self.rows_held += len(rows)

    def gathered(self) -> Gathered | None:
        """Return the statistics and the sample of all added parts; None if they have no items."""
        statistics: FeatureStatistics | None = None
        for _, node in sorted(self._statistics.items(), key=lambda node: node[0][1] << node[0][0]):
            statistics = _merged(statistics, node)
        if statistics is None:
            return None
        self._prune()
        parts = [items for items, _ in self._parts.values()]
        features = np.concatenate([items.features for items in parts])
        return Gathered(statistics, self.tracks, Items(features, [track for items in parts for track in items.tracks]))

    def _merge(self, number: int, statistics: FeatureStatistics | None) -> None:
        """Merge statistics along a binary tree over the numbers of the parts.

        The rounding of a sum depends on the order of its terms. The tree fixes the order. While a part is missing, the
        parts after it occupy at most one node for each level of the tree.
        """
        level = 0
        while (level, number ^ 1) in self._statistics:
            sibling = self._statistics.pop((level, number ^ 1))
            statistics = _merged(sibling, statistics) if number % 2 else _merged(statistics, sibling)
            level, number = level + 1, number // 2
        self._statistics[level, number] = statistics

    def _prune(self) -> None:
        """Keep the items of the lowest ranks, in the order of the parts."""
        numbers = sorted(self._parts)
        sizes = [len(self._parts[number][1]) for number in numbers]
        ranks = np.concatenate([self._parts[number][1] for number in numbers])
        kept = _lowest(ranks, self.max_items)
        if len(kept) == self.max_items:
            self._max_rank = int(ranks[kept].max())
        part_indices = np.repeat(np.arange(len(numbers)), sizes)[kept]
        row_indices = np.concatenate([np.arange(size) for size in sizes])[kept]
        parts = {}
        for index in np.unique(part_indices):
            items, part_ranks = self._parts[numbers[index]]
            rows = row_indices[part_indices == index]
            parts[numbers[index]] = items.at(rows), part_ranks[rows]
        self._parts, self.rows_held = parts, len(kept)


def rank(track: str, number: int) -> int:
    """Hash the track of an item and its number within the track to a rank in [0, 2^64).

    A sample holds the items of the lowest ranks.
    """
    return int.from_bytes(hashlib.blake2b(f"{track}\0{number}".encode(), digest_size=8).digest())


def _lowest(ranks: Ranks, count: int) -> Rows:
    """Row indices of the `count` lowest ranks, ascending. Of equal ranks, the first rows are chosen."""
    return np.sort(np.argsort(ranks, kind="stable")[:count])


def _merged(one: FeatureStatistics | None, other: FeatureStatistics | None) -> FeatureStatistics | None:
    """Statistics of the union of two sets. The statistics of an empty set are None."""
    if one is None or other is None:
        return one or other
    return one + other
