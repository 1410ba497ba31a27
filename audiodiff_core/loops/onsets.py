"""Times and strengths of onsets: peaks in the rise of the magnitude in four frequency bands.

librosa's onset strength is a rise in decibels, in which a soft hat over silence counts nearly as much as a kick.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples

Values = npt.NDArray[np.float64]

HOP_S = 0.005
WINDOW_S = 0.03
BAND_EDGES_HZ = (20.0, 180.0, 700.0, 2_800.0)
"""Lower edges of the bands: kick, body of a snare, most melodies, noise of hats."""
BAND_WEIGHTS = np.array([[1.0], [1.0], [0.8], [0.35]])
"""Hats divide beats more often than they mark them."""
FAINT_BAND = 0.03
"""Bands whose loudest rise is less than this share of the loudest of all are ignored."""
SUDDEN = 0.25
"""Bands whose loudest rise is less than this share of their loudest level are ignored: sustained tones that beat."""
LOUDNESS_EXPONENT = 0.1
"""A band counts relative to its own loudest rise, times a weak power of that rise."""
RISE_FRAMES = 3
"""A rise is measured over so many frames."""
ONSET_SPACING_S = 0.03
FAINT_ONSET = 0.05
"""Peaks of less than this share of the strongest are ignored."""
TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Onsets:
    """Onsets of audio of `duration_s` seconds, and the rise in each band that they were picked from.

    times_s: ascending, (n,). strengths: (n,) in (0, 1]. rises: (bands, frames) in [0, 1]; frame i is at `i * hop_s - delay_s`.
    """

    times_s: Values
    strengths: Values
    rises: Values
    hop_s: float
    delay_s: float
    duration_s: float

    @property
    def envelope(self) -> Values:
        """The strongest weighted rise of any band (frames,)."""
        strongest: Values = (self.rises * BAND_WEIGHTS).max(axis=0)
        return strongest


def find_onsets(audio: Samples, sample_rate: int) -> Onsets:
    """Find the onsets of mono `audio` (n,), which is not silence throughout. The level of the audio has no influence."""
    import scipy.fft

    hop, size = max(1, round(HOP_S * sample_rate)), 2 * max(4, round(WINDOW_S * sample_rate / 2))
    scaled = (audio / np.abs(audio).max()).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(scaled, (size, size)), size)[: len(audio) + 1 : hop]
    power = np.square(np.abs(scipy.fft.rfft(frames * np.hanning(size + 1)[:-1].astype(np.float32), overwrite_x=True)))
    edges = np.searchsorted(scipy.fft.rfftfreq(size, 1 / sample_rate), [*BAND_EDGES_HZ, np.inf])
    levels = np.sqrt([power[:, low:high].sum(axis=1, dtype=np.float64) for low, high in itertools.pairwise(edges)])
    rises = np.zeros_like(levels)
    rises[:, RISE_FRAMES:] = np.maximum(0, levels[:, RISE_FRAMES:] - levels[:, :-RISE_FRAMES])
    loudest = rises[:, 2 * size // hop :].max(
        axis=1, keepdims=True, initial=0
    )  # without the rise at which the audio begins
    relative = loudest / max(float(loudest.max()), TINY)
    is_used = (loudest > SUDDEN * levels.max(axis=1, keepdims=True)) & (relative > FAINT_BAND)
    scale = np.where(is_used, relative**LOUDNESS_EXPONENT / np.maximum(loudest, TINY), 0)
    return _picked(np.minimum(1, rises * scale), hop / sample_rate, size / 2 / sample_rate, len(audio) / sample_rate)


def _picked(rises: Values, hop_s: float, delay_s: float, duration_s: float) -> Onsets:
    """The onsets at the peaks of the envelope, with times between frames by parabolic interpolation."""
    from scipy.ndimage import maximum_filter1d

    envelope = (rises * BAND_WEIGHTS).max(axis=0)
    envelope /= max(float(envelope.max()), TINY)
    reach = round(ONSET_SPACING_S / hop_s)
    is_peak = (envelope >= maximum_filter1d(envelope, 2 * reach + 1)) & (envelope > FAINT_ONSET)
    is_peak[[0, -1]] = False
    peaks = np.flatnonzero(is_peak)
    peaks = peaks[np.diff(peaks, prepend=-reach) > 1]
    before, at, after = envelope[peaks - 1], envelope[peaks], envelope[peaks + 1]
    shift = (after - before) / 2 / np.maximum(2 * at - before - after, TINY)
    times_s = (peaks + shift.clip(-0.5, 0.5)) * hop_s - delay_s
    return Onsets(times_s, at, rises, hop_s, delay_s, duration_s)
