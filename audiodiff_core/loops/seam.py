"""Audibility of the seam of a loop, and its level."""

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples

SEAM_WINDOW_S = 0.02
SEAM_WINDOWS = 4
"""At least so many windows lie in any audio: in a shorter one they are shorter than 20 ms."""
SEAM_SAMPLES = 16
"""Audio of fewer samples, than which no model makes fewer, has no seam score."""
INAUDIBLE = 1e-3
"""-60 dB."""


def seam_score(audio: Samples, sample_rate: int) -> float:
    """Compare the jump of the signal from its end to its beginning with the jumps inside: about 1 or less is not heard.

    The larger of two ratios, each of a jump at the wrap to the 90th percentile of such jumps inside:
    - spectral flux, between the windows of 20 ms before and after a point: timbre or level changes;
    - level step, by how far a sample is off the line through the two before it: a click, a cut wave.
    Jumps of less than -60 dB of the audio's level count as that much. In audio shorter than four windows, a window is a
    quarter of the audio.

    Raises ValueError for fewer than 16 samples.
    """
    if len(audio) < SEAM_SAMPLES:
        raise ValueError(f"audio of {len(audio)} samples: a seam score needs at least {SEAM_SAMPLES}")
    window = min(round(SEAM_WINDOW_S * sample_rate), len(audio) // SEAM_WINDOWS)
    frames = np.lib.stride_tricks.sliding_window_view(np.concatenate([audio[-window:], audio]), window)[::window]
    spectra = np.abs(np.fft.rfft(frames * np.hanning(window), axis=-1))
    flux = np.abs(np.diff(spectra, axis=0)).sum(axis=-1)
    steps = np.abs(np.diff(np.concatenate([audio[-2:], audio]).astype(np.float64), n=2))
    level = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
    return max(
        _ratio(flux[0], flux[1:], INAUDIBLE * float(spectra.sum(axis=-1).mean())),
        _ratio(steps[:2].max(), steps[2:], INAUDIBLE * level),
    )


def level_db(audio: Samples) -> float:
    """Root mean square level in dB relative to full scale; silence is -200 dB."""
    return float(20 * np.log10(max(1e-10, float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))))))


def _ratio(jump: float, interior: npt.NDArray[np.floating], least: float) -> float:
    return max(float(jump), least) / max(float(np.percentile(interior, 90)), least) if least > 0 else 0.0
