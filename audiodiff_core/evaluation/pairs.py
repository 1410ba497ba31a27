"""Distances between all pairs of feature vectors, in blocks that fit in memory."""

from collections.abc import Iterator

from audiodiff_core.evaluation.features import Features

BLOCK_VALUES = 4_000_000
"""Largest number of values of a block of a matrix of pairs."""


def distances(one: Features, other: Features) -> Features:
    """Compute the Euclidean distances, of shape (n, m), between features of shape (n, d) and (m, d)."""
    from scipy.spatial.distance import cdist  # its import takes a third of a second

    matrix: Features = cdist(one, other)
    return matrix


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Split the rows of a matrix of `rows` x `columns` pairs into blocks that fit in memory."""
    step = max(1, BLOCK_VALUES // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))
