"""Features of a slice of audio that condition a model: tempo, key, loudness and brightness."""

from dataclasses import dataclass

import numpy as np

from audiodiff_core.audio import Samples
from audiodiff_core.loops.key import measure_key
from audiodiff_core.loops.loudness import MIN_LOUDNESS_RATE_HZ, loudness_lufs
from audiodiff_core.loops.tempo import measure_tempo

LONGEST_MEASURED_S = 30.0
"""Duration in seconds from the start of audio that is measured, which bounds the memory for slices of hours."""
SHARED = 0.75
"""Fraction of the measured audio of an earlier slice that a slice shares to have its features."""
SPECTRUM_S = 0.1
"""Length in seconds of the spectra that `brightness_hz` averages."""


@dataclass(frozen=True)
class Features:
    """Measured features of audio. A feature is None if it is not defined, as the tempo of a drone.

    Args:
        tempo: Tempo in beats per minute.
        key: Name of the key, such as `F# minor`.
        loudness: Integrated loudness in LUFS.
        brightness: Spectral centroid in Hz.
    """

    tempo: float | None = None
    key: str | None = None
    loudness: float | None = None
    brightness: float | None = None


def measure_features(audio: Samples, sample_rate: int) -> Features:
    """Measure the features of mono audio, of its first half minute if it is longer.

    Args:
        audio: Samples of shape (n,), n > 0, all finite.
        sample_rate: Sample rate in Hz, at least 1000. Below 8000 Hz, the loudness is not defined.
    """
    audio = audio[: round(LONGEST_MEASURED_S * sample_rate)]
    if not audio.any():
        return Features()
    return Features(
        tempo=measure_tempo(audio, sample_rate).bpm,
        key=measure_key(audio, sample_rate).name,
        loudness=loudness_lufs(audio, sample_rate) if sample_rate >= MIN_LOUDNESS_RATE_HZ else None,
        brightness=brightness_hz(audio, sample_rate),
    )


class SliceMeter:
    """Measurement of the slices of a file in their order.

    A slice that holds most of the audio that was measured last has the features of that audio, so that the time for a
    file grows little with the overlap of its slices.

    Args:
        sample_rate: Sample rate in Hz, at least 1000.
    """

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._shared_to_s = 0.0  # last start of a slice that shares enough
        self._features: Features | None = None

    def features(self, samples: Samples, start_s: float) -> Features:
        """Return the features of a slice.

        Args:
            samples: Samples of shape (n,), n > 0, all finite.
            start_s: Start of the slice in the file in seconds, which must not decrease between calls.
        """
        if self._features is None or start_s > self._shared_to_s:
            self._features = measure_features(samples, self._sample_rate)
            measured_s = min(len(samples) / self._sample_rate, LONGEST_MEASURED_S)
            # Steps between slices are rounded to samples.
            self._shared_to_s = start_s + (1 - SHARED) * measured_s + 1 / self._sample_rate
        return self._features


def brightness_hz(audio: Samples, sample_rate: int) -> float | None:
    """Measure the spectral centroid of mono audio, which does not depend on its level.

    Args:
        audio: Samples of shape (n,), not all 0.
        sample_rate: Sample rate in Hz.

    Returns:
        The mean frequency in Hz, weighted by the magnitudes of all spectra, or None if all spectra are silent.
    """
    import scipy.fft

    size = 2 * max(1, round(SPECTRUM_S * sample_rate / 2))
    missing = max(0, size - len(audio))
    padded = np.pad(audio / np.abs(audio).max(), (missing // 2, missing - missing // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: size // 2]
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    magnitudes = np.abs(scipy.fft.rfft(frames * window, axis=1)).sum(axis=0, dtype=np.float64)
    total = float(magnitudes.sum())
    return float(magnitudes @ scipy.fft.rfftfreq(size, 1 / sample_rate)) / total if total else None
