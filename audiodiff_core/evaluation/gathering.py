"""Statistics of all items of a side, of any number, and the rows of a sample.

1. A worker embeds the items of a part of a side and keeps those that can be in the sample (`Part.of`).
2. A `Gathering` takes the parts in any order, joins their statistics, and keeps the rows that can still be in the sample.
3. `Gathering.gathered` returns the statistics and the sample.

The sample is the items of the lowest ranks, and a rank is a hash of an item's track and of its number within the track. So the
sample depends neither on the parts nor on their order. Every item of a side is equally likely to be in it, whatever the length of
its track. Figures that compare tracks use the tracks of the sample, each with all of its items there.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from audiodiff_core.evaluation.features import Features
from audiodiff_core.evaluation.frechet import FeatureStatistics

SAMPLED_AT_MOST = 10_000  # items of a side: metrics of pairs take time that grows with the square of it

Ranks = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """Features (n, d) and, of each item, the name of the track that it is from."""

    features: Features
    tracks: Sequence[str]

    def __post_init__(self) -> None:
        assert len(self.features) == len(self.tracks)

    def __len__(self) -> int:
        return len(self.tracks)

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """The track of each item (n,), counted from 0 in the order of their names."""
        return np.unique(np.asarray(self.tracks), return_inverse=True)[1]

    def at(self, rows: Rows) -> "Items":
        """Return the items of these rows."""
        return Items(self.features[rows], [self.tracks[row] for row in rows])


@dataclass(frozen=True)
class Part:
    """Items of a side that were embedded together.

    Args:
        items: All items or, of more than a sample holds, those of the lowest ranks, in their order.
        ranks: The rank of each of `items` (n,).
        tracks: The number of tracks of all items. No track has items in two parts.
        left_out: Statistics of the items that are not in `items`, None if all are.
    """

    items: Items
    ranks: Ranks
    tracks: int
    left_out: FeatureStatistics | None = None

    @classmethod
    def of(cls, items: Items, ranks: Ranks, at_most: int) -> Self:
        """Return the part of these items, whose `ranks` are (n,), for a sample of `at_most` items."""
        kept, tracks = _lowest(ranks, at_most), len(set(items.tracks))
        if len(kept) == len(items):
            return cls(items, ranks, tracks)
        return cls(items.at(kept), ranks[kept], tracks, FeatureStatistics.of(np.delete(items.features, kept, axis=0)))

    def __len__(self) -> int:
        return len(self.items) + (self.left_out.count if self.left_out else 0)

    @property
    def statistics(self) -> FeatureStatistics | None:
        """Statistics of all items, None if there are none."""
        return _joined(FeatureStatistics.of(self.items.features) if len(self.items) else None, self.left_out)


@dataclass(frozen=True)
class Gathered:
    """A side: statistics of all its items, the number of their tracks, and a sample of the items."""

    statistics: FeatureStatistics
    tracks: int
    sample: Items


class Gathering:
    """A side while its parts come in, in any order.

    Args:
        at_most: The items of the sample. At most twice as many rows are held.
    """

    def __init__(self, at_most: int) -> None:
        self.at_most = at_most
        self.tracks = 0
        self.rows_held = 0
        self._held: dict[int, tuple[Items, Ranks]] = {}
        self._highest = np.iinfo(np.uint64).max  # rank that can be in the sample
        self._statistics: dict[tuple[int, int], FeatureStatistics | None] = {}

    def add(self, number: int, part: Part) -> None:
        """Add the part of this number; the numbers of a side start at 0."""
        assert len(part.items) <= self.at_most
        self.tracks += part.tracks
        self._join(number, part.statistics)
        if self.rows_held + len(part.items) > 2 * self.at_most:
            self._cut()
        rows = np.flatnonzero(part.ranks <= self._highest)
        if len(rows):
            self._held[number] = part.items.at(rows), part.ranks[rows]
            self.rows_held += len(rows)

    def gathered(self) -> Gathered | None:
        """Return what was added, None if it holds no items."""
        statistics: FeatureStatistics | None = None
        for _, of_stretch in sorted(self._statistics.items(), key=lambda node: node[0][1] << node[0][0]):
            statistics = _joined(statistics, of_stretch)
        if statistics is None:
            return None
        self._cut()
        items = [items for items, _ in self._held.values()]
        tracks = [track for some in items for track in some.tracks]
        return Gathered(statistics, self.tracks, Items(np.concatenate([some.features for some in items]), tracks))

    def _join(self, number: int, statistics: FeatureStatistics | None) -> None:
        """Join statistics along a binary tree over the numbers of the parts.

        The last bits of a sum depend on the order of its terms, which the tree fixes. While a part is missing, a node for each level
        of the tree is held, not one for each part that came after it.
        """
        level = 0
        while (level, number ^ 1) in self._statistics:
            neighbour = self._statistics.pop((level, number ^ 1))
            statistics = _joined(neighbour, statistics) if number % 2 else _joined(statistics, neighbour)
            level, number = level + 1, number // 2
        self._statistics[level, number] = statistics

    def _cut(self) -> None:
        """Keep the rows of the lowest ranks, in the order of the parts."""
        numbers = sorted(self._held)
        sizes = [len(self._held[number][1]) for number in numbers]
        ranks = np.concatenate([self._held[number][1] for number in numbers])
        kept = _lowest(ranks, self.at_most)
        if len(kept) == self.at_most:
            self._highest = int(ranks[kept].max())
        part_of = np.repeat(np.arange(len(numbers)), sizes)[kept]
        row_of = np.concatenate([np.arange(size) for size in sizes])[kept]
        held = {}
        for place in np.unique(part_of):
            items, its_ranks = self._held[numbers[place]]
            rows = row_of[part_of == place]
            held[numbers[place]] = items.at(rows), its_ranks[rows]
        self._held, self.rows_held = held, len(kept)


def rank(track: str, number: int) -> int:
    """Return the rank of an item in the order in which a sample takes items: a hash of its track and of its number within the track."""
    return int.from_bytes(hashlib.blake2b(f"{track}\0{number}".encode(), digest_size=8).digest())


def _lowest(ranks: Ranks, at_most: int) -> Rows:
    """The rows of the `at_most` lowest ranks (n,), of equal ones the first, in ascending order."""
    return np.sort(np.argsort(ranks, kind="stable")[:at_most])


def _joined(one: FeatureStatistics | None, other: FeatureStatistics | None) -> FeatureStatistics | None:
    """Statistics of two sets of items, each None if it has none."""
    if one is None or other is None:
        return one or other
    return one + other
