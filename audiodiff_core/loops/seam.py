"""Audibility of the seam of a loop, and level of audio."""

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples

WINDOW_S = 0.02
MIN_WINDOWS = 4
"""Smallest number of windows in the audio. Audio shorter than 80 ms has windows shorter than 20 ms."""
MIN_SAMPLES = 16
"""Length of the shortest audio that has a seam score. No model makes shorter audio."""
INAUDIBLE_JUMP = 1e-3
"""Amplitude of an inaudible jump relative to the level of the audio: -60 dB."""


def seam_score(audio: Samples, sample_rate: int) -> float:
    """Compare the jump at the wrap of a loop with the jumps inside the loop.

    The wrap is the transition from the last sample to the first. The score is the larger of two ratios. Each ratio is a
    jump at the wrap divided by the 90th percentile of the same kind of jump inside the loop:

    - Spectral flux between the windows of 20 ms before and after a point. This jump detects a change of timbre or
      level.
    - Second difference of the samples: the distance of a sample from the line through the two samples before it. This
      jump detects a click or a wave that is cut off.

    Jumps below -60 dB, relative to the level of the audio, count as -60 dB, because they are inaudible.

    Args:
        audio: Samples of shape (n,).
        sample_rate: Sample rate in Hz.

    Returns:
        A score of at least 0. The seam is inaudible at about 1 and below.

    Raises:
        ValueError: If the audio has fewer than 16 samples.
    """
    if len(audio) < MIN_SAMPLES:
        raise ValueError(f"audio of {len(audio)} samples: a seam score needs at least {MIN_SAMPLES}")
    window = min(round(WINDOW_S * sample_rate), len(audio) // MIN_WINDOWS)
    frames = np.lib.stride_tricks.sliding_window_view(np.concatenate([audio[-window:], audio]), window)[::window]
    spectra = np.abs(np.fft.rfft(frames * np.hanning(window), axis=-1))
    flux = np.abs(np.diff(spectra, axis=0)).sum(axis=-1)
    steps = np.abs(np.diff(np.concatenate([audio[-2:], audio]).astype(np.float64), n=2))
    level = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
    return max(
        _jump_ratio(flux[0], flux[1:], INAUDIBLE_JUMP * float(spectra.sum(axis=-1).mean())),
        _jump_ratio(steps[:2].max(), steps[2:], INAUDIBLE_JUMP * level),
    )


def level_db(audio: Samples) -> float:
    """Return the root mean square level of `audio` in dB relative to full scale, -200 dB for silence."""
    return float(20 * np.log10(max(1e-10, float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))))))


def _jump_ratio(jump: float, inner_jumps: npt.NDArray[np.floating], floor: float) -> float:
    """Ratio of `jump` to the 90th percentile of `inner_jumps`, both at least `floor`; 0 for silence."""
    return max(float(jump), floor) / max(float(np.percentile(inner_jumps, 90)), floor) if floor > 0 else 0.0
