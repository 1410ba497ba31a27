"""Fréchet distance between two sets of feature vectors."""

from typing import Self

import numpy as np
import numpy.typing as npt

from audiodiff_core.evaluation.features import Features, ItemWeights


class FeatureStatistics:
    """Count, mean and co-moments of a set of feature vectors.

    `a + b` are the statistics of the union of two sets.

    Args:
        count: Number of feature vectors.
        mean: Mean of shape (d,).
        moments: Sums of products of deviations from the mean, of shape (d, d).
    """

    def __init__(self, count: int, mean: Features, moments: Features) -> None:
        self.count, self.mean, self.moments = count, mean, moments

    @classmethod
    def of(cls, features: npt.NDArray[np.floating], weights: ItemWeights | None = None) -> Self:
        """Compute the statistics of feature vectors.

        Args:
            features: Feature vectors of shape (n, d), n > 0.
            weights: Number of repetitions of each vector, whole numbers of shape (n,). None selects 1.
        """
        counts = np.ones(len(features)) if weights is None else weights
        count = int(counts.sum())
        mean = counts @ features / count
        centered = features - mean
        return cls(count, mean, (centered * counts[:, np.newaxis]).T @ centered)

    def __add__(self, other: "FeatureStatistics") -> "FeatureStatistics":
        # Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance", 1983
        count = self.count + other.count
        shift = other.mean - self.mean
        moments = self.moments + other.moments + np.outer(shift, shift) * (self.count * other.count / count)
        return FeatureStatistics(count, self.mean + shift * (other.count / count), moments)

    @property
    def covariance(self) -> Features:
        """Unbiased covariance matrix of shape (d, d). Raises ValueError for fewer than 2 vectors."""
        if self.count < 2:
            raise ValueError(f"{self.count} items: a Fréchet distance needs at least 2 on each side")
        return self.moments / (self.count - 1)


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """Compute the squared Fréchet distance of two Gaussian distributions.

    Args:
        one: Statistics of at least 2 feature vectors.
        other: Statistics of at least 2 feature vectors of the same dimension.

    Returns:
        A distance of at least 0; 0 for equal means and covariances.

    Raises:
        ValueError: If there are fewer than 2 feature vectors.
    """
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    # root @ B @ root has the eigenvalues of A @ B. It is symmetric, so that the square roots are real.
    cross = np.sqrt(np.linalg.eigvalsh(root @ other.covariance @ root).clip(0)).sum()
    # Dowson & Landau 1982; Heusel et al. 2017: |mean_A - mean_B|^2 + tr(A + B - 2 sqrt(A B))
    distance = (
        np.square(one.mean - other.mean).sum() + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross
    )
    return max(0.0, float(distance))
