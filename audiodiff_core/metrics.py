"""How close a set of items is to another, from a feature vector of each: that of `logmel_stats`, or of another embedder (`embedders.py`).

    frechet_distance   from means and covariances, gathered in parts and merged; needs many more items than features
    kernel_distance    unbiased for any number of items
    density_coverage   how many real items' neighbourhoods the generated ones lie in, and which share of them is reached
    nearest_distances  how near each item comes to any of a set, to see copies of training items

Functions that take `weights` give one value for each column of them: how often each item counts, as in a bootstrap (`evaluation.py`).
"""

from collections.abc import Iterator
from typing import Self

import numpy as np
import numpy.typing as npt

from audiodiff_core.mel import IMAGE_MAX, Images

Features = npt.NDArray[np.float64]
Weights = npt.NDArray[np.float64]

BANDS = 16
EMBEDDER = "logmel-stats"
NEIGHBOURS = 5  # k of density and coverage, as in their paper
BLOCK_VALUES = 4_000_000  # of a matrix of pairs that is in memory at a time


def logmel_stats(images: Images) -> Features:
    """The embedder `logmel-stats`: mel images (batch, y_res, width) -> (batch, 48), no weights.

    The image in [0, 1] is averaged into 16 groups of neighbouring bands; of each group's course in time it takes the mean (timbre),
    the standard deviation (dynamics) and the mean absolute difference between frames (rhythm).
    """
    if images.shape[1] % BANDS:
        raise ValueError(f"{images.shape[1]} mel bands: {EMBEDDER} needs a multiple of {BANDS}")
    courses = images.reshape(len(images), BANDS, -1, images.shape[2]).mean(axis=2) / IMAGE_MAX
    return np.concatenate([courses.mean(axis=2), courses.std(axis=2), np.abs(np.diff(courses, axis=2)).mean(axis=2)], axis=1)


class FeatureStatistics:
    """Count, mean and co-moments of feature vectors (n, d), gathered by `of` and joined by `+` in any order (Chan et al. 1983)."""

    def __init__(self, count: int, mean: Features, moments: Features) -> None:
        self.count, self.mean, self.moments = count, mean, moments

    @classmethod
    def of(cls, features: npt.NDArray[np.floating], weights: Weights | None = None) -> Self:
        """Of features (n, d), each counted once or, in whole numbers, by `weights` (n,)."""
        counts = np.ones(len(features)) if weights is None else weights
        count = int(counts.sum())
        mean = counts @ features / count
        centred = features - mean
        return cls(count, mean, (centred * counts[:, np.newaxis]).T @ centred)

    def __add__(self, other: "FeatureStatistics") -> "FeatureStatistics":
        count = self.count + other.count
        shift = other.mean - self.mean
        moments = self.moments + other.moments + np.outer(shift, shift) * (self.count * other.count / count)
        return FeatureStatistics(count, self.mean + shift * (other.count / count), moments)

    @property
    def covariance(self) -> Features:
        if self.count < 2:
            raise ValueError(f"{self.count} items: a Fréchet distance needs at least 2 on each side")
        return self.moments / (self.count - 1)


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017), 0 for equal statistics.

    The square root of the product of covariances is taken of a symmetric matrix with the same eigenvalues, so it is always real.
    """
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other.covariance @ root).clip(0)).sum()
    distance = np.square(one.mean - other.mean).sum() + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross
    return max(0.0, float(distance))


def spread(images: Images) -> float:
    """Mean absolute difference, in levels of 255, between pairs of images (n, y_res, x_res): 0 where all are the same picture."""
    if len(images) < 2:
        raise ValueError(f"{len(images)} images: their spread needs at least 2")
    # Sorting each pixel's values turns the sum over all pairs into one weighted sum.
    ordered = np.sort(images.reshape(len(images), -1).astype(np.float64), axis=0)
    weights = 2 * np.arange(len(images)) - len(images) + 1
    return float((weights @ ordered).mean() / (len(images) * (len(images) - 1) / 2))


def kernel_distance(one: Features, other: Features) -> float:
    """Squared maximum mean discrepancy of two sets of features (n, d) and (m, d) under the kernel (x.y / d + 1)^3 (Binkowski et al. 2018).

    The estimate is unbiased: 0 on average for sets of the same kind, of whatever size, so it may be a little below 0.
    """
    return float(kernel_distances(one, other, np.ones((len(one), 1)), np.ones((len(other), 1)))[0])


def kernel_distances(one: Features, other: Features, one_weights: Weights, other_weights: Weights) -> Weights:
    """As `kernel_distance`, for each column of the weights (n, b) and (m, b); no item is paired with itself, though it may count several times.

    NaN where all the weight of a side is one item's.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"{len(one)} and {len(other)} items: a kernel distance needs at least 2 on each side")
    cross = _kernel_sums(one, other, one_weights, other_weights) / (one_weights.sum(axis=0) * other_weights.sum(axis=0))
    distances: Weights = _mean_within(one, one_weights) + _mean_within(other, other_weights) - 2 * cross
    return distances


def _mean_within(features: Features, weights: Weights) -> Weights:
    own = np.square(weights).T @ _kernel(np.square(features).sum(axis=1), features.shape[1])
    pairs = weights.sum(axis=0) ** 2 - np.square(weights).sum(axis=0)
    mean: Weights = np.full(len(pairs), np.nan)
    np.divide(_kernel_sums(features, features, weights, weights) - own, pairs, out=mean, where=pairs > 0)
    return mean


def _kernel_sums(one: Features, other: Features, one_weights: Weights, other_weights: Weights) -> Weights:
    total = np.zeros(one_weights.shape[1])
    for rows in _blocks(len(one), len(other)):
        total += (one_weights[rows] * (_kernel(one[rows] @ other.T, one.shape[1]) @ other_weights)).sum(axis=0)
    return total


def _kernel(products: Features, dimensions: int) -> Features:
    base = products / dimensions + 1
    kernel: Features = base * base * base
    return kernel


def density_coverage(reference: Features, candidate: Features, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020) of candidate items (m, d) over reference items (n, d).

    Around each reference item lies a ball that reaches its `neighbours`-th nearest other reference item. Density is how many balls a
    candidate lies in on average, divided by `neighbours`: about 1 for sets of the same kind, more where candidates keep to the dense
    places. Coverage is the share of balls, 0 to 1, that any candidate lies in: 1 - 2^-neighbours on average for large sets of the same kind and size.
    """
    density, coverage = density_coverages(reference, candidate, np.ones((len(candidate), 1)), neighbours)
    return float(density[0]), float(coverage[0])


def density_coverages(reference: Features, candidate: Features, weights: Weights, neighbours: int = NEIGHBOURS) -> tuple[Weights, Weights]:
    """As `density_coverage`, for each column of the candidates' weights (m, b)."""
    if len(reference) <= neighbours or not len(candidate):
        raise ValueError(f"{len(reference)} reference and {len(candidate)} candidate items: density and coverage need more than {neighbours} and 1")
    radii = _radii(reference, neighbours)
    inside = np.zeros(weights.shape[1])
    reached = np.zeros(weights.shape[1])
    for rows in _blocks(len(reference), len(candidate)):
        counts = (distances(reference[rows], candidate) <= radii[rows, np.newaxis]).astype(np.float64) @ weights
        inside += counts.sum(axis=0)
        reached += (counts > 0).sum(axis=0)
    return inside / (neighbours * weights.sum(axis=0)), reached / len(reference)


def _radii(reference: Features, neighbours: int) -> Features:
    """The distance of each item to its `neighbours`-th nearest other one."""
    blocks = [np.partition(distances(reference[rows], reference), neighbours, axis=1)[:, neighbours] for rows in _blocks(len(reference), len(reference))]
    return np.concatenate(blocks)


def nearest_distances(items: Features, among: Features) -> tuple[Features, npt.NDArray[np.int64]]:
    """For each of `items` (n, d), the distance to the nearest of `among` (m, d), and which that is."""
    nearest, which = np.empty(len(items)), np.empty(len(items), np.int64)
    for rows in _blocks(len(items), len(among)):
        found = distances(items[rows], among)
        which[rows] = found.argmin(axis=1)
        nearest[rows] = found.min(axis=1)
    return nearest, which


def nearest_other_distances(items: Features, tracks: npt.NDArray[np.int64]) -> Features:
    """For each item (n, d), the distance to the nearest one of another track (n,); infinite where there is no other track."""
    nearest = []
    for rows in _blocks(len(items), len(items)):
        found = distances(items[rows], items)
        found[tracks[rows, np.newaxis] == tracks] = np.inf
        nearest.append(found.min(axis=1))
    return np.concatenate(nearest)


def nearer_share(distances_of_one: Features, distances_of_other: Features) -> float:
    """How often a distance of the first kind is smaller than one of the second, ties counted half: 0.5 where they are of the same kind.

    The Mann-Whitney statistic by which Meehan, Chaudhuri & Dasgupta (2020) see copies: of the distances to training items that
    generated items and real ones outside the training set have. Near 1, generated items lie suspiciously near.
    """
    ordered = np.sort(distances_of_other)
    above = len(ordered) - np.searchsorted(ordered, distances_of_one, side="right")
    not_below = len(ordered) - np.searchsorted(ordered, distances_of_one, side="left")
    return float((above + not_below).mean() / 2 / len(ordered))


def distances(one: Features, other: Features) -> Features:
    """Euclidean distances (n, m) of features (n, d) and (m, d)."""
    from scipy.spatial.distance import cdist  # takes a third of a second to import

    found: Features = cdist(one, other)
    return found


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Stretches of rows, so that their pairs with all columns fit in memory."""
    step = max(1, BLOCK_VALUES // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))
