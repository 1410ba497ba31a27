"""Feature vectors of mel images without a network, and the spread of images."""

import numpy as np
import numpy.typing as npt

from audiodiff_core.mel import IMAGE_MAX, Images

Features = npt.NDArray[np.float64]
ItemWeights = npt.NDArray[np.float64]

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
    return np.concatenate(
        [courses.mean(axis=2), courses.std(axis=2), np.abs(np.diff(courses, axis=2)).mean(axis=2)], axis=1
    )


def spread(images: Images) -> float:
    """Mean absolute difference, in levels of 255, between pairs of images (n, y_res, x_res): 0 where all are the same picture."""
    if len(images) < 2:
        raise ValueError(f"{len(images)} images: their spread needs at least 2")
    # Sorting each pixel's values turns the sum over all pairs into one weighted sum.
    ordered = np.sort(images.reshape(len(images), -1).astype(np.float64), axis=0)
    weights = 2 * np.arange(len(images)) - len(images) + 1
    return float((weights @ ordered).mean() / (len(images) * (len(images) - 1) / 2))
