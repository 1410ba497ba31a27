"""Kernel distance (squared maximum mean discrepancy, MMD) between two sets of feature vectors."""

import numpy as np

from audiodiff_core.evaluation.features import Features, ItemWeights
from audiodiff_core.evaluation.pairs import blocks


def kernel_distance(one: Features, other: Features) -> float:
    """Compute the unbiased estimate of the squared MMD of two sets of features.

    Args:
        one: Features of shape (n, d), n > 1.
        other: Features of shape (m, d), m > 1.

    Returns:
        The distance. The expected value is 0 for sets of equal distribution and any size, so that the distance of
        similar sets can be negative.

    Raises:
        ValueError: If a set has fewer than 2 items.
    """
    return float(kernel_distances(one, other, np.ones((len(one), 1)), np.ones((len(other), 1)))[0])


def kernel_distances(
    one: Features, other: Features, one_weights: ItemWeights, other_weights: ItemWeights
) -> ItemWeights:
    """Compute the kernel distance for b weightings of the items. No item is paired with itself.

    Args:
        one: Features of shape (n, d), n > 1.
        other: Features of shape (m, d), m > 1.
        one_weights: Weights of `one`, of shape (n, b).
        other_weights: Weights of `other`, of shape (m, b).

    Returns:
        Distances of shape (b,). NaN if only one item of a set has a weight above 0.

    Raises:
        ValueError: If a set has fewer than 2 items.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"{len(one)} and {len(other)} items: a kernel distance needs at least 2 on each side")
    cross = _kernel_sums(one, other, one_weights, other_weights) / (one_weights.sum(axis=0) * other_weights.sum(axis=0))
    distances: ItemWeights = _mean_within(one, one_weights) + _mean_within(other, other_weights) - 2 * cross
    return distances


def _mean_within(features: Features, weights: ItemWeights) -> ItemWeights:
    """Weighted mean of the kernel over the pairs of different items of a set, of shape (b,)."""
    own = np.square(weights).T @ _kernel(np.square(features).sum(axis=1), features.shape[1])
    pairs = weights.sum(axis=0) ** 2 - np.square(weights).sum(axis=0)
    mean: ItemWeights = np.full(len(pairs), np.nan)
    np.divide(_kernel_sums(features, features, weights, weights) - own, pairs, out=mean, where=pairs > 0)
    return mean


def _kernel_sums(one: Features, other: Features, one_weights: ItemWeights, other_weights: ItemWeights) -> ItemWeights:
    """Weighted sum of the kernel over all pairs of two sets, of shape (b,)."""
    total = np.zeros(one_weights.shape[1])
    for rows in blocks(len(one), len(other)):
        total += (one_weights[rows] * (_kernel(one[rows] @ other.T, one.shape[1]) @ other_weights)).sum(axis=0)
    return total


def _kernel(products: Features, dimensions: int) -> Features:
    """Kernel of vectors with the given inner products."""
    base = products / dimensions + 1  # (x.y / d + 1)^3 (Binkowski et al., "Demystifying MMD GANs", 2018)
    kernel: Features = base * base * base
    return kernel
