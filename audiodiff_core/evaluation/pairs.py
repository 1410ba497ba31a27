"""Distances of all pairs of feature vectors, in blocks that fit in memory."""

from collections.abc import Iterator

from audiodiff_core.evaluation.features import Features

BLOCK_VALUES = 4_000_000  # of a matrix of pairs that is in memory at a time


def distances(one: Features, other: Features) -> Features:
    """Euclidean distances (n, m) of features (n, d) and (m, d)."""
    from scipy.spatial.distance import cdist  # takes a third of a second to import

    found: Features = cdist(one, other)
    return found


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Stretches of rows, so that their pairs with all columns fit in memory."""
    step = max(1, BLOCK_VALUES // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))
