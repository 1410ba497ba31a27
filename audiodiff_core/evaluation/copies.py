"""Nearest-neighbor distances, which show copies of training items."""

import numpy as np
import numpy.typing as npt

from audiodiff_core.evaluation.features import Features
from audiodiff_core.evaluation.pairs import blocks, distances


def nearest_distances(items: Features, among: Features) -> tuple[Features, npt.NDArray[np.int64]]:
    """Find the nearest neighbor of each item.

    Args:
        items: Features of shape (n, d).
        among: Features of the possible neighbors, of shape (m, d).

    Returns:
        Distances to the nearest neighbors and their indices in `among`, both of shape (n,).
    """
    nearest, indices = np.empty(len(items)), np.empty(len(items), np.int64)
    for rows in blocks(len(items), len(among)):
        block = distances(items[rows], among)
        indices[rows] = block.argmin(axis=1)
        nearest[rows] = block.min(axis=1)
    return nearest, indices


def nearest_other_distances(items: Features, tracks: npt.NDArray[np.int64]) -> Features:
    """Compute the distance of each item to the nearest item of another track.

    Args:
        items: Features of shape (n, d).
        tracks: Number of the track of each item, of shape (n,).

    Returns:
        Distances of shape (n,); infinite if all items are of one track.
    """
    nearest = []
    for rows in blocks(len(items), len(items)):
        block = distances(items[rows], items)
        block[tracks[rows, np.newaxis] == tracks] = np.inf
        nearest.append(block.min(axis=1))
    return np.concatenate(nearest)


def nearer_share(generated: Features, real: Features) -> float:
    """Compute the probability that a generated item is nearer to the training items than a real item is.

    Ties count half. This is the Mann-Whitney statistic of Meehan, Chaudhuri & Dasgupta ("A Non-Parametric Test to
    Detect Data-Copying in Generative Models", 2020).

    Args:
        generated: Distances of generated items to their nearest training items, of shape (n,).
        real: Distances of real items outside the training set to their nearest training items, of shape (m,).

    Returns:
        A share in [0, 1]: 0.5 for equal distributions, near 1 for copies of training items.
    """
    ordered = np.sort(real)
    above = len(ordered) - np.searchsorted(ordered, generated, side="right")
    not_below = len(ordered) - np.searchsorted(ordered, generated, side="left")
    return float((above + not_below).mean() / 2 / len(ordered))
