"""Clipping of audio."""

import numpy as np

from audiodiff_core.audio import Samples

FULL_SCALE = 32_767 / 32_768
"""Amplitude from which a sample is at full scale: the largest positive value of 16-bit audio."""


def clipped_share(audio: Samples) -> float:
    """Compute the share of samples at full scale.

    Args:
        audio: Samples of shape (n,), n > 0.

    Returns:
        A share in [0, 1]; 0 for audio whose peak is below full scale.
    """
    return float(np.mean(np.abs(audio) >= FULL_SCALE))
