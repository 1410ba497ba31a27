"""Interpolation between noises and between encodings."""

import math
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt

Noise = npt.NDArray[np.float32]
PARALLEL_RAD = 1e-4
"""Angle in radians below which two noises count as parallel. Noises at more than pi minus this angle are opposite."""


def slerp(start: Noise, end: Noise, share: float | npt.NDArray[np.floating]) -> Noise:
    """Interpolate spherically between pairs of noises (Shoemake 1985).

    The norm of the result changes gradually from `start` to `end`, so that the result remains typical noise. Linear
    interpolation would reduce the norm. Parallel noises are interpolated linearly. Between opposite noises, the result
    follows a half circle through the coordinate axis that is most nearly perpendicular to `start`.

    Args:
        start: Noises (n, ...).
        end: Noises of the same shape.
        share: Position from start (0) to end (1): one number for all pairs, or one number per pair (n,).

    Returns:
        Noises of the same shape.

    Raises:
        ValueError: If the shapes differ, or if a share is out of range.
    """
    if start.shape != end.shape or start.ndim < 2:
        raise ValueError(f"noises of shapes {start.shape} and {end.shape}: pass two of one shape (n, ...)")
    shares = np.broadcast_to(np.asarray(share, np.float64), len(start))
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"share {share} is not in [0, 1]")
    pairs = [
        _slerp(first.astype(np.float64).ravel(), last.astype(np.float64).ravel(), pair_share)
        for first, last, pair_share in zip(start, end, shares, strict=True)
    ]
    return cast(Noise, np.stack(pairs).reshape(start.shape).astype(np.float32))


def _slerp(start: npt.NDArray[np.float64], end: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.float64]:
    norms = float(np.linalg.norm(start)), float(np.linalg.norm(end))
    if min(norms) == 0:
        return (1 - share) * start + share * end
    start_unit, end_unit = start / norms[0], end / norms[1]
    # Kahan's formula, which is accurate near 0 and near pi
    angle = 2 * math.atan2(np.linalg.norm(start_unit - end_unit), np.linalg.norm(start_unit + end_unit))
    if angle < PARALLEL_RAD:
        return (1 - share) * start + share * end
    if math.pi - angle < PARALLEL_RAD:
        normal = np.zeros_like(start_unit)
        normal[np.abs(start_unit).argmin()] = 1
        normal -= (normal @ start_unit) * start_unit
        normal /= np.linalg.norm(normal)
        return ((1 - share) * norms[0] + share * norms[1]) * (
            math.cos(math.pi * share) * start_unit + math.sin(math.pi * share) * normal
        )
    return (math.sin((1 - share) * angle) * start + math.sin(share * angle) * end) / math.sin(angle)


def chain(noises: Noise, between: int) -> Noise:
    """Interpolate along a sequence of key noises.

    Args:
        noises: Key noises (k, ...).
        between: Number of noises between two neighboring keys.

    Returns:
        Noises (k + (k - 1) * between, ...), including the keys.

    Raises:
        ValueError: If there are fewer than 2 keys, or if `between` is negative.
    """
    if len(noises) < 2 or between < 0:
        raise ValueError(
            f"a chain of {len(noises)} noises with {between} between: use at least 2, with 0 or more between"
        )
    shares = np.arange(between + 1) / (between + 1)
    legs = [
        slerp(np.repeat(start[None], len(shares), 0), np.repeat(end[None], len(shares), 0), shares)
        for start, end in pairwise(noises)
    ]
    return np.concatenate([*legs, noises[-1:]])


def linear_chain(encodings: npt.NDArray[np.floating], between: int) -> npt.NDArray[np.floating]:
    """Interpolate linearly along a sequence of key encodings, at the positions of `chain`.

    Args:
        encodings: Key encodings (k, dim), k at least 2.
        between: Number of encodings between two neighboring keys.

    Returns:
        Encodings (k + (k - 1) * between, dim), including the keys.
    """
    keys = len(encodings)
    position = np.linspace(0, keys - 1, keys + (keys - 1) * between)
    low = np.minimum(position.astype(int), keys - 2)
    share = (position - low)[:, np.newaxis]
    return cast(npt.NDArray[np.floating], (1 - share) * encodings[low] + share * encodings[low + 1])
