"""Fréchet distance between two sets of feature vectors."""

from typing import Self

import numpy as np
import numpy.typing as npt

from audiodiff_core.evaluation.features import Features, ItemWeights


class FeatureStatistics:
    """Count, mean and co-moments of feature vectors (n, d), gathered by `of` and joined by `+` in any order (Chan et al. 1983)."""

    def __init__(self, count: int, mean: Features, moments: Features) -> None:
        self.count, self.mean, self.moments = count, mean, moments

    @classmethod
    def of(cls, features: npt.NDArray[np.floating], weights: ItemWeights | None = None) -> Self:
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
    distance = (
        np.square(one.mean - other.mean).sum() + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross
    )
    return max(0.0, float(distance))
