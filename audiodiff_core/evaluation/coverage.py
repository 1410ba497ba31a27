"""Density and coverage of generated items over real ones (Naeem et al., 2020)."""

import numpy as np

from audiodiff_core.evaluation.features import Features, ItemWeights
from audiodiff_core.evaluation.pairs import blocks, distances

NEIGHBOURS = 5  # k of density and coverage, as in their paper


def density_coverage(reference: Features, candidate: Features, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020) of candidate items (m, d) over reference items (n, d).

    Around each reference item lies a ball that reaches its `neighbours`-th nearest other reference item. Density is how many balls a
    candidate lies in on average, divided by `neighbours`: about 1 for sets of the same kind, more where candidates keep to the dense
    places. Coverage is the share of balls, 0 to 1, that any candidate lies in: 1 - 2^-neighbours on average for large sets of the same kind and size.
    """
    density, coverage = density_coverages(reference, candidate, np.ones((len(candidate), 1)), neighbours)
    return float(density[0]), float(coverage[0])


def density_coverages(
    reference: Features, candidate: Features, weights: ItemWeights, neighbours: int = NEIGHBOURS
) -> tuple[ItemWeights, ItemWeights]:
    """As `density_coverage`, for each column of the candidates' weights (m, b)."""
    if len(reference) <= neighbours or not len(candidate):
        raise ValueError(
            f"{len(reference)} reference and {len(candidate)} candidate items: density and coverage need more than {neighbours} and 1"
        )
    radii = _radii(reference, neighbours)
    inside = np.zeros(weights.shape[1])
    reached = np.zeros(weights.shape[1])
    for rows in blocks(len(reference), len(candidate)):
        counts = (distances(reference[rows], candidate) <= radii[rows, np.newaxis]).astype(np.float64) @ weights
        inside += counts.sum(axis=0)
        reached += (counts > 0).sum(axis=0)
    return inside / (neighbours * weights.sum(axis=0)), reached / len(reference)


def _radii(reference: Features, neighbours: int) -> Features:
    """The distance of each item to its `neighbours`-th nearest other one."""
    radii = [
        np.partition(distances(reference[rows], reference), neighbours, axis=1)[:, neighbours]
        for rows in blocks(len(reference), len(reference))
    ]
    return np.concatenate(radii)
