"""Density and coverage of generated items.

See Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020.
"""

import numpy as np

from audiodiff_core.evaluation.features import Features, ItemWeights
from audiodiff_core.evaluation.pairs import blocks, distances

NEIGHBORS = 5
"""k of the k-th nearest neighbor that defines the balls, as in the paper."""


def density_coverage(reference: Features, candidate: Features, neighbors: int = NEIGHBORS) -> tuple[float, float]:
    """Compute density and coverage of candidate items over reference items.

    Each reference item is the center of a ball. Its radius is the distance to the k-th nearest other reference item.

    Args:
        reference: Features of shape (n, d), n > k.
        candidate: Features of shape (m, d), m > 0.
        neighbors: k.

    Returns:
        Density and coverage. Density is the mean number of balls that contain a candidate item, divided by k: about 1
        for sets of equal distribution, more if the candidates concentrate in dense regions of the reference. Coverage
        is the fraction of balls that contain a candidate item: about 1 - 2^-k for large sets of equal distribution
        and size.

    Raises:
        ValueError: If there are too few items.
    """
    density, coverage = density_coverages(reference, candidate, np.ones((len(candidate), 1)), neighbors)
    return float(density[0]), float(coverage[0])


def density_coverages(
    reference: Features, candidate: Features, weights: ItemWeights, neighbors: int = NEIGHBORS
) -> tuple[ItemWeights, ItemWeights]:
    """Compute density and coverage for b weightings of the candidate items.

    Args:
        reference: Features of shape (n, d), n > k.
        candidate: Features of shape (m, d), m > 0.
        weights: Weights of the candidate items, of shape (m, b).
        neighbors: k, see `density_coverage`.

    Returns:
        Density and coverage of each weighting, both of shape (b,).

    Raises:
        ValueError: If there are too few items.
    """
    if len(reference) <= neighbors or not len(candidate):
        raise ValueError(
            f"{len(reference)} reference and {len(candidate)} candidate items: density and coverage need at least "
            f"{neighbors + 1} and 1"
        )
    radii = _radii(reference, neighbors)
    inside = np.zeros(weights.shape[1])
    reached = np.zeros(weights.shape[1])
    for rows in blocks(len(reference), len(candidate)):
        counts = (distances(reference[rows], candidate) <= radii[rows, np.newaxis]).astype(np.float64) @ weights
        inside += counts.sum(axis=0)
        reached += (counts > 0).sum(axis=0)
    return inside / (neighbors * weights.sum(axis=0)), reached / len(reference)


def _radii(reference: Features, neighbors: int) -> Features:
    """Distance of each item to its k-th nearest other item."""
    radii = [
        np.partition(distances(reference[rows], reference), neighbors, axis=1)[:, neighbors]
        for rows in blocks(len(reference), len(reference))
    ]
    return np.concatenate(radii)
