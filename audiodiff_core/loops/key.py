"""Key estimation: the major or minor key whose profile correlates best with the pitch classes of the audio.

1. The peaks of short-time spectra that stand out from their neighborhood are partials of tones. Noise and clicks have
   almost none.
2. Each partial counts as the first, second, third and fourth harmonic of a tone (Gómez, "Tonal Description of
   Polyphonic Audio for Music Content Processing", 2006). Its weight falls with its distance from a common tuning. The
   sums over all octaves are the chroma: the strengths of the twelve pitch classes.
3. The chroma is correlated with the profiles of the 24 keys (the method of Krumhansl and Schmuckler). The profiles are
   shares of segments of music in which a scale degree sounds (Temperley, "Music and Probability", 2007).
4. The audio has no key if it has few partials, or if two keys fit about equally well.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples
from audiodiff_core.audio.key_names import TONICS, Mode
from audiodiff_core.loops.beats import require_mono

MAJOR_PROFILE = (0.748, 0.060, 0.488, 0.082, 0.670, 0.460, 0.096, 0.715, 0.104, 0.366, 0.057, 0.400)
MINOR_PROFILE = (0.712, 0.084, 0.474, 0.618, 0.049, 0.460, 0.105, 0.747, 0.404, 0.067, 0.133, 0.330)

WINDOW_S = 0.37
"""Length of the spectra in seconds, rounded to a power of 2 of samples. It separates semitones from about 100 Hz."""
RANGE_HZ = (55.0, 2_000.0)
"""Frequencies of partials."""
NEIGHBORHOOD_HZ = 120.0
"""Width of the band whose mean level, in dB, a partial exceeds."""
MIN_PROMINENCE = 3.0
"""Smallest logarithm of the power of a partial over its neighborhood (13 dB). Noise exceeds it once in 70,000 bins."""
FLOOR = 1e-10
"""Power below which nothing is a partial, relative to a sine at the peak of the audio: -100 dB."""
HARMONICS = 4
HARMONIC_DECAY = 0.6
"""Ratio of the weights of successive harmonics."""
REFERENCE_HZ, REFERENCE_NOTE = 440.0, 69
BLOCK_FRAMES = 64

CLEAR_MARGIN = 0.2
"""Lead in correlation over the second best key from which the confidence is not reduced."""
CLEAR_TONAL_SHARE = 0.3
"""Share of the energy in partials from which the confidence is not reduced."""
MIN_CONFIDENCE = 0.35
"""Smallest confidence at which the audio has a key."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Key:
    """Key of audio.

    Args:
        tonic: Name of the tonic with sharps, such as F#; None if the audio has no key.
        mode: Mode of the key; None if the audio has no key.
        confidence: Confidence in [0, 1] of the best key, also if the audio has no key.
    """

    tonic: str | None
    mode: Mode | None
    confidence: float

    @property
    def name(self) -> str | None:
        """Name of the key, such as `F# minor`, or None."""
        return None if self.tonic is None else f"{self.tonic} {self.mode}"

    @property
    def symbol(self) -> str | None:
        """Symbol of the key in tags, such as `F#m` or `C`, or None."""
        return None if self.tonic is None else f"{self.tonic}{'m' if self.mode == 'minor' else ''}"


def measure_key(audio: Samples, sample_rate: int) -> Key:
    """Measure the key of mono audio. The result does not depend on the level of the audio.

    Args:
        audio: Mono samples of shape (n,). Audio shorter than a spectrum (0.37 s) has no key.
        sample_rate: Sample rate in Hz, at least 1000.

    Raises:
        ValueError: If the audio is empty, not mono, or holds NaN or infinite samples.
    """
    require_mono(audio, sample_rate)
    chroma, tonal_share = _chroma(audio, sample_rate)
    if not chroma.any():
        return Key(None, None, 0.0)
    correlations = _correlations(chroma)
    second, best = np.argsort(correlations)[-2:]
    margin = float(correlations[best] - correlations[second])
    clarity = min(1.0, margin / CLEAR_MARGIN) * min(1.0, tonal_share / CLEAR_TONAL_SHARE)
    confidence = max(0.0, float(correlations[best])) * clarity
    if confidence < MIN_CONFIDENCE:
        return Key(None, None, confidence)
    return Key(TONICS[best % 12], "major" if best < len(TONICS) else "minor", confidence)


@cache
def _profiles() -> Values:
    """Return the profiles (24, 12) of the twelve major keys, then of the twelve minor keys, of mean 0 and norm 1."""
    profiles = [np.roll(profile, tonic) for profile in (MAJOR_PROFILE, MINOR_PROFILE) for tonic in range(len(TONICS))]
    return _standardized(np.array(profiles))


def _correlations(chroma: Values) -> Values:
    """Return the Pearson correlations (24,) of the chroma with the profiles."""
    return _profiles() @ _standardized(chroma) if np.ptp(chroma) else np.zeros(2 * len(TONICS))


def _standardized(values: Values) -> Values:
    """Return the vectors on the last axis with mean 0 and norm 1."""
    centered = values - values.mean(axis=-1, keepdims=True)
    standardized: Values = centered / np.linalg.norm(centered, axis=-1, keepdims=True)
    return standardized


def _chroma(audio: Samples, sample_rate: int) -> tuple[Values, float]:
    """Return the strengths (12,) of the pitch classes from C, and the share of the energy that lies in partials."""
    size = 1 << round(np.log2(WINDOW_S * sample_rate))
    peak = float(np.abs(audio).max())
    if len(audio) < size or not peak:
        return np.zeros(len(TONICS)), 0.0
    window = np.hanning(size + 1)[:-1].astype(np.float32) * np.float32(4 / size / peak)
    frames = np.lib.stride_tricks.sliding_window_view(audio, size)[:: size // 2]
    notes, amplitudes, tonal, total = list[Values](), list[Values](), 0.0, 0.0
    for first in range(0, len(frames), BLOCK_FRAMES):
        found, strengths, energy, whole = _partials(frames[first : first + BLOCK_FRAMES] * window, sample_rate)
        notes.append(found)
        amplitudes.append(strengths)
        tonal, total = tonal + energy, total + whole
    return _folded(np.concatenate(notes), np.concatenate(amplitudes)), tonal / total if total else 0.0


def _partials(frames: Samples, sample_rate: int) -> tuple[Values, Values, float, float]:
    """Return the fractional MIDI notes and the amplitudes of partials, their energy, and the energy of all bins."""
    import scipy.fft
    from scipy.ndimage import uniform_filter1d

    bin_hz = sample_rate / frames.shape[1]
    power = np.square(np.abs(scipy.fft.rfft(frames, axis=1)[:, : int(RANGE_HZ[1] / bin_hz) + 3]), dtype=np.float64)
    levels = np.log(power + FLOOR)
    around = uniform_filter1d(levels, 2 * round(NEIGHBORHOOD_HZ / 2 / bin_hz) + 1, axis=1, mode="nearest")
    inner = levels[:, 1:-1]
    stands_out = (inner > levels[:, :-2]) & (inner >= levels[:, 2:]) & (inner - around[:, 1:-1] > MIN_PROMINENCE)
    frame, place = np.nonzero(stands_out)
    place += 1
    left, center, right = (levels[frame, place + step] for step in (-1, 0, 1))
    hz = (place + (left - right) / (2 * (left - 2 * center + right))) * bin_hz  # the top of a parabola
    in_range = (hz >= RANGE_HZ[0]) & (hz <= RANGE_HZ[1])
    frame, place = frame[in_range], place[in_range]
    energy = sum(float(power[frame, place + step].sum()) for step in (-1, 0, 1))
    notes = REFERENCE_NOTE + len(TONICS) * np.log2(hz[in_range] / REFERENCE_HZ)
    return notes, np.sqrt(power[frame, place]), energy, float(power.sum())


def _folded(notes: Values, amplitudes: Values) -> Values:
    """Sum the amplitudes of partials by pitch class, relative to the tuning that fits them best."""
    tuning = np.angle(np.sum(amplitudes * np.exp(2j * np.pi * notes))) / (2 * np.pi)
    chroma = np.zeros(len(TONICS))
    for harmonic in range(1, HARMONICS + 1):
        fundamentals = notes - tuning - len(TONICS) * np.log2(harmonic)
        nearest = np.round(fundamentals)
        weights = amplitudes * np.square(np.cos(np.pi * (fundamentals - nearest))) * HARMONIC_DECAY ** (harmonic - 1)
        chroma += np.bincount(nearest.astype(np.int64) % len(TONICS), weights, len(TONICS))
    return chroma
