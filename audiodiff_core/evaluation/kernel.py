"""Kernel distance (squared maximum mean discrepancy) between two sets of feature vectors."""

import numpy as np

from audiodiff_core.evaluation.features import Features, ItemWeights
from audiodiff_core.evaluation.pairs import blocks


def kernel_distance(one: Features, other: Features) -> float:
    """Squared maximum mean discrepancy of two sets of features (n, d) and (m, d) under the kernel (x.y / d + 1)^3 (Binkowski et al. 2018).

    The estimate is unbiased: 0 on average for sets of the same kind, of whatever size, so it may be a little below 0.
    """
    return float(kernel_distances(one, other, np.ones((len(one), 1)), np.ones((len(other), 1)))[0])


def kernel_distances(
    one: Features, other: Features, one_weights: ItemWeights, other_weights: ItemWeights
) -> ItemWeights:
    """As `kernel_distance`, for each column of the weights (n, b) and (m, b); no item is paired with itself, though it may count several times.

    NaN where all the weight of a side is one item's.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"{len(one)} and {len(other)} items: a kernel distance needs at least 2 on each side")
    cross = _kernel_sums(one, other, one_weights, other_weights) / (one_weights.sum(axis=0) * other_weights.sum(axis=0))
    distances: ItemWeights = _mean_within(one, one_weights) + _mean_within(other, other_weights) - 2 * cross
    return distances


def _mean_within(features: Features, weights: ItemWeights) -> ItemWeights:
    own = np.square(weights).T @ _kernel(np.square(features).sum(axis=1), features.shape[1])
    pairs = weights.sum(axis=0) ** 2 - np.square(weights).sum(axis=0)
    mean: ItemWeights = np.full(len(pairs), np.nan)
    np.divide(_kernel_sums(features, features, weights, weights) - own, pairs, out=mean, where=pairs > 0)
    return mean


def _kernel_sums(one: Features, other: Features, one_weights: ItemWeights, other_weights: ItemWeights) -> ItemWeights:
    total = np.zeros(one_weights.shape[1])
    for rows in blocks(len(one), len(other)):
        total += (one_weights[rows] * (_kernel(one[rows] @ other.T, one.shape[1]) @ other_weights)).sum(axis=0)
    return total


def _kernel(products: Features, dimensions: int) -> Features:
    base = products / dimensions + 1
    kernel: Features = base * base * base
    return kernel
