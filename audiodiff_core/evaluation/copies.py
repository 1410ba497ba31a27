"""Distances to nearest items, which show copies of training items."""

import numpy as np
import numpy.typing as npt

from audiodiff_core.evaluation.features import Features
from audiodiff_core.evaluation.pairs import blocks, distances


def nearest_distances(items: Features, among: Features) -> tuple[Features, npt.NDArray[np.int64]]:
    """For each of `items` (n, d), the distance to the nearest of `among` (m, d), and which that is."""
    nearest, which = np.empty(len(items)), np.empty(len(items), np.int64)
    for rows in blocks(len(items), len(among)):
        found = distances(items[rows], among)
        which[rows] = found.argmin(axis=1)
        nearest[rows] = found.min(axis=1)
    return nearest, which


def nearest_other_distances(items: Features, tracks: npt.NDArray[np.int64]) -> Features:
    """For each item (n, d), the distance to the nearest one of another track (n,); infinite where there is no other track."""
    nearest = []
    for rows in blocks(len(items), len(items)):
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
