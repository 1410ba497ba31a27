"""How close a set of loops is to another: Fréchet distance from statistics that can be gathered in parts and merged."""

from typing import Self

import numpy as np
import numpy.typing as npt

from audiodiff_core.mel import IMAGE_MAX, Images

Features = npt.NDArray[np.float64]

BANDS = 16
EMBEDDER = "logmel-stats"


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
    def of(cls, features: Features) -> Self:
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

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
