"""Ways from one noise to another."""

import math
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt

Noise = npt.NDArray[np.float32]
PARALLEL = 1e-4
"""Angle in radians below which two noises are taken to point the same way (or opposite ways)."""


def slerp(start: Noise, end: Noise, share: float | npt.NDArray[np.floating]) -> Noise:
    """Spherical interpolation of each pair of noises (n, ...) at `share` in [0, 1], one for all or (n,): as likely as noise is all along the way.

    (Shoemake 1985.) Where the two are parallel, the straight line; where they are opposite, any half circle: the one over the
    axis to which `start` is nearest perpendicular. Raises ValueError for shapes or shares that do not fit.
    """
    if start.shape != end.shape or start.ndim < 2:
        raise ValueError(f"noises of shapes {start.shape} and {end.shape}: two of one shape (n, ...) are taken")
    shares = np.broadcast_to(np.asarray(share, np.float64), len(start))
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"share {share} is not in [0, 1]")
    pairs = [
        _slerp(one.astype(np.float64).ravel(), other.astype(np.float64).ravel(), part)
        for one, other, part in zip(start, end, shares, strict=True)
    ]
    return cast(Noise, np.stack(pairs).reshape(start.shape).astype(np.float32))


def _slerp(start: npt.NDArray[np.float64], end: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.float64]:
    lengths = float(np.linalg.norm(start)), float(np.linalg.norm(end))
    if min(lengths) == 0:
        return (1 - share) * start + share * end
    one, other = start / lengths[0], end / lengths[1]
    angle = 2 * math.atan2(
        np.linalg.norm(one - other), np.linalg.norm(one + other)
    )  # Kahan's: accurate at 0 and at pi too
    if angle < PARALLEL:
        return (1 - share) * start + share * end
    if math.pi - angle < PARALLEL:
        across = np.zeros_like(one)
        across[np.abs(one).argmin()] = 1
        across -= (across @ one) * one
        across /= np.linalg.norm(across)
        return ((1 - share) * lengths[0] + share * lengths[1]) * (
            math.cos(math.pi * share) * one + math.sin(math.pi * share) * across
        )
    return (math.sin((1 - share) * angle) * start + math.sin(share * angle) * end) / math.sin(angle)


def chain(noises: Noise, between: int) -> Noise:
    """Key noises (k, ...) and `between` more on the way from each to the next -> (k + (k - 1) * between, ...), keys included."""
    if len(noises) < 2 or between < 0:
        raise ValueError(
            f"a chain of {len(noises)} noises with {between} between: at least 2, with 0 or more between, are taken"
        )
    shares = np.arange(between + 1) / (between + 1)
    legs = [
        slerp(np.repeat(one[None], len(shares), 0), np.repeat(other[None], len(shares), 0), shares)
        for one, other in pairwise(noises)
    ]
    return np.concatenate([*legs, noises[-1:]])
