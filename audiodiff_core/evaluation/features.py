"""Features of mel images that need no network, and the spread of a set of images."""

import numpy as np
import numpy.typing as npt

from audiodiff_core.mel import IMAGE_MAX, Images

Features = npt.NDArray[np.float64]
"""Feature vectors of shape (n, d), or values of shape (n,) derived from them."""
ItemWeights = npt.NDArray[np.float64]
"""Multiplicities of n items in b resamples, of shape (n, b), or b values derived from them."""

BANDS = 16
"""Number of groups of mel bands in `logmel_stats`."""
EMBEDDER = "logmel-stats"
"""Name of the embedder that computes `logmel_stats`."""


def logmel_stats(images: Images) -> Features:
    """Compute statistics of the bands of mel images, the features of the embedder `logmel-stats`.

    Images are scaled to [0, 1] and averaged into 16 groups of adjacent mel bands. The features are three statistics of
    each group over time: the mean (timbre), the standard deviation (dynamics), and the mean absolute difference of
    successive frames (rhythm).

    Args:
        images: uint8 images of shape (batch, y_res, width). `y_res` is a multiple of 16.

    Returns:
        Features of shape (batch, 48).

    Raises:
        ValueError: If `y_res` is not a multiple of 16.
    """
    check_bands(images.shape[1])
    bands = images.reshape(len(images), BANDS, -1, images.shape[2]).mean(axis=2) / IMAGE_MAX
    return np.concatenate([bands.mean(axis=2), bands.std(axis=2), np.abs(np.diff(bands, axis=2)).mean(axis=2)], axis=1)


def check_bands(y_res: int) -> None:
    """Raise ValueError if `logmel_stats` cannot group `y_res` mel bands."""
    if y_res % BANDS:
        raise ValueError(
            f"{y_res} mel bands: {EMBEDDER} needs a multiple of {BANDS}: prepare with a resolution of such a height, "
            "or set embedder to an encoder of audio"
        )


def spread(images: Images) -> float:
    """Compute the mean absolute difference between all pairs of images.

    Args:
        images: uint8 images of shape (n, y_res, x_res), n > 1.

    Returns:
        Mean difference of pixels in 0 to 255; 0 if all images are equal.

    Raises:
        ValueError: If there are fewer than 2 images.
    """
    if len(images) < 2:
        raise ValueError(f"{len(images)} images: their spread needs at least 2")
    # Sorting each pixel's values turns the sum over all pairs into one weighted sum.
    ordered = np.sort(images.reshape(len(images), -1).astype(np.float64), axis=0)
    weights = 2 * np.arange(len(images)) - len(images) + 1
    return float((weights @ ordered).mean() / (len(images) * (len(images) - 1) / 2))
