"""Onset detection: peaks in the rise of the magnitude in four frequency bands.

librosa's onset strength is not used. It measures rises in decibels, in which a soft hi-hat over silence is nearly as
strong as a kick.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples

Values = npt.NDArray[np.float64]

HOP_S = 0.005
WINDOW_S = 0.03
"""Shortest length of the spectra in seconds. The length is the next one with a fast transform."""
BAND_EDGES_HZ = (20.0, 180.0, 700.0, 2_800.0)
"""Lower edges of the bands in Hz: kick, body of a snare, most melodies, noise of hi-hats."""
BAND_WEIGHTS = np.array([[1.0], [1.0], [0.8], [0.35]])
"""Weights of the bands. Hi-hats have a low weight because they often play between the beats."""
MIN_BAND_RISE = 0.03
"""Smallest peak rise of a band, relative to the largest peak rise of any band. Other bands are not used."""
MIN_BAND_MODULATION = 0.25
"""Smallest peak rise of a band, relative to the peak level of the band. Other bands are not used.

This threshold excludes the beating of sustained tones.
"""
LOUDNESS_EXPONENT = 0.1
"""Exponent of the loudness of a band.

The loudness is the peak rise of the band relative to the largest peak rise of any band. The rises of a band are scaled
so that their peak is the loudness to the power of this exponent.
"""
RISE_FRAMES = 3
"""Number of frames over which a rise is measured."""
ONSET_SPACING_S = 0.03
"""Smallest distance in seconds between onsets."""
MIN_STRENGTH = 0.05
"""Smallest strength of an onset, relative to the strongest onset."""
TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Onsets:
    """Onsets of an audio signal, and the rises of its frequency bands.

    Args:
        times_s: Times of the onsets in seconds, ascending, of shape (n,).
        strengths: Strengths in (0, 1], of shape (n,).
        rises: Rise of the magnitude in each band, in [0, 1], of shape (bands, frames). The time of frame i is
            `i * hop_s - delay_s`.
        hop_s: Time between frames in seconds.
        delay_s: Offset of the frame times in seconds.
        duration_s: Duration of the audio in seconds.
    """

    times_s: Values
    strengths: Values
    rises: Values
    hop_s: float
    delay_s: float
    duration_s: float

    @property
    def envelope(self) -> Values:
        """Largest weighted rise of any band in each frame, of shape (frames,)."""
        strongest: Values = (self.rises * BAND_WEIGHTS).max(axis=0)
        return strongest


def find_onsets(audio: Samples, sample_rate: int) -> Onsets:
    """Find the onsets of mono audio. The result does not depend on the level of the audio.

    Args:
        audio: Mono samples of shape (n,), not all 0.
        sample_rate: Sample rate in Hz.
    """
    import scipy.fft

    hop = max(1, round(HOP_S * sample_rate))
    size = 2 * scipy.fft.next_fast_len(max(4, round(WINDOW_S * sample_rate / 2)))
    scaled = (audio / np.abs(audio).max()).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(scaled, (size, size)), size)[: len(audio) + 1 : hop]
    power = np.square(np.abs(scipy.fft.rfft(frames * np.hanning(size + 1)[:-1].astype(np.float32), overwrite_x=True)))
    edges = np.searchsorted(scipy.fft.rfftfreq(size, 1 / sample_rate), [*BAND_EDGES_HZ, np.inf])
    levels = np.sqrt([power[:, low:high].sum(axis=1, dtype=np.float64) for low, high in itertools.pairwise(edges)])
    rises = np.zeros_like(levels)
    rises[:, RISE_FRAMES:] = np.maximum(0, levels[:, RISE_FRAMES:] - levels[:, :-RISE_FRAMES])
    # The rise from the zero padding to the audio, in the first frames, is not a peak.
    peak_rises = rises[:, 2 * size // hop :].max(axis=1, keepdims=True, initial=0)
    loudness = peak_rises / max(float(peak_rises.max()), TINY)
    is_used = (peak_rises > MIN_BAND_MODULATION * levels.max(axis=1, keepdims=True)) & (loudness > MIN_BAND_RISE)
    scale = np.where(is_used, loudness**LOUDNESS_EXPONENT / np.maximum(peak_rises, TINY), 0)
    return _pick_peaks(
        np.minimum(1, rises * scale), hop / sample_rate, size / 2 / sample_rate, len(audio) / sample_rate
    )


def _pick_peaks(rises: Values, hop_s: float, delay_s: float, duration_s: float) -> Onsets:
    """Place onsets at the peaks of the envelope, refined between frames by parabolic interpolation."""
    from scipy.ndimage import maximum_filter1d

    envelope = (rises * BAND_WEIGHTS).max(axis=0)
    envelope /= max(float(envelope.max()), TINY)
    reach = round(ONSET_SPACING_S / hop_s)
    is_peak = (envelope >= maximum_filter1d(envelope, 2 * reach + 1)) & (envelope > MIN_STRENGTH)
    is_peak[[0, -1]] = False
    peaks = np.flatnonzero(is_peak)
    peaks = peaks[np.diff(peaks, prepend=-reach) > 1]
    before, at, after = envelope[peaks - 1], envelope[peaks], envelope[peaks + 1]
    shift = (after - before) / 2 / np.maximum(2 * at - before - after, TINY)
    times_s = (peaks + shift.clip(-0.5, 0.5)) * hop_s - delay_s
    return Onsets(times_s, at, rises, hop_s, delay_s, duration_s)
