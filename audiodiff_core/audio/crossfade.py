"""Crossfade of two signals with constant power, whatever their correlation."""

import math

import numpy as np

from audiodiff_core.audio.formats import Samples


def crossfade(fade_out: Samples, fade_in: Samples) -> Samples:
    """Crossfade two signals of equal length with constant power.

    The gain depends on the correlation of the signals, so that the power has neither a dip nor a bump.

    See Fink, Holters & Zölzer, "Signal-matched power-complementary cross-fading and dry-wet mixing", 2016.

    Args:
        fade_out: The signal at the start of the fade, of shape (n,).
        fade_in: The signal at the end of the fade, of shape (n,).

    Returns:
        float32 samples of shape (n,).
    """
    angle = (np.arange(len(fade_out)) + 0.5) / len(fade_out) * np.pi / 2
    falling, rising = np.cos(angle), np.sin(angle)
    power = 1 + 2 * falling * rising * max(0.0, correlation(fade_out, fade_in))
    return ((falling * fade_out + rising * fade_in) / np.sqrt(power)).astype(np.float32)


def correlation(one: Samples, other: Samples) -> float:
    """Compute the normalized correlation of two signals of equal length.

    Args:
        one: Samples of shape (n,).
        other: Samples of shape (n,).

    Returns:
        The correlation in [-1, 1]; 0 if either signal is silent.
    """
    energy = math.sqrt(float(np.square(one, dtype=np.float64).sum()) * float(np.square(other, dtype=np.float64).sum()))
    return float(np.dot(one.astype(np.float64), other)) / energy if energy > 0 else 0.0
