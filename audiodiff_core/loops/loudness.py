"""Levels that audio is brought to: a peak, or a loudness by ITU-R BS.1770."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from audiodiff_core.audio import Samples

LOUDEST_PEAK_DB = -1.0
"""Largest peak in dBFS to which a gain for a loudness may bring audio."""
PEAK_RANGE_DB = (-60.0, 0.0)
LOUDNESS_RANGE_LUFS = (-60.0, 0.0)
BLOCK_S = 0.4
"""Length of the blocks whose loudness BS.1770 averages."""
MIN_LOUDNESS_RATE_HZ = 8_000
"""Smallest sample rate at which the filters of BS.1770 can be designed."""
FORMS = "peak:DB with -60 to 0 dBFS, such as peak:-1, or lufs:LUFS with -60 to 0, such as lufs:-14"


@dataclass(frozen=True)
class TargetLevel:
    """A level that audio is brought to by a gain.

    Args:
        measure: `peak`: the largest magnitude of a sample. `lufs`: the integrated loudness of ITU-R BS.1770-4.
        level: Level in dBFS or LUFS, -60 to 0.
    """

    measure: Literal["peak", "lufs"]
    level: float

    @classmethod
    def parse(cls, text: str) -> "TargetLevel":
        """Read `peak:DB` or `lufs:LUFS`.

        Raises:
            ValueError: The text has another form, or the level is out of range.
        """
        measure, _, number = text.partition(":")
        try:
            level = float(number)
        except ValueError:
            level = float("nan")
        ranges = {"peak": PEAK_RANGE_DB, "lufs": LOUDNESS_RANGE_LUFS}
        if measure not in ranges or not ranges[measure][0] <= level <= ranges[measure][1]:
            raise ValueError(f"normalize {text}: must be {FORMS}")
        return cls("peak" if measure == "peak" else "lufs", level)

    def __str__(self) -> str:
        return f"{self.measure}:{self.level:.12g}"

    def gain_db(self, audio: Samples, sample_rate: int) -> float:
        """Return the gain in dB that brings mono audio to the level.

        A gain for a loudness is limited, so that the peak becomes at most -1 dBFS. Audio shorter than a block of 400 ms
        is measured as if it were repeated. Silence, and audio below the gate of the measurement (-70 LUFS), has no
        loudness and keeps its level.

        Args:
            audio: Samples (n,).
            sample_rate: Sample rate in Hz.

        Raises:
            ValueError: The loudness of audio of this sample rate is not defined.
        """
        if self.measure == "lufs" and sample_rate < MIN_LOUDNESS_RATE_HZ:
            raise ValueError(
                f"normalize {self} at {sample_rate} Hz: needs at least {MIN_LOUDNESS_RATE_HZ} Hz, use peak:DB"
            )
        peak = float(np.abs(audio).max(initial=0))
        if peak == 0:
            return 0.0
        peak_db = 20 * float(np.log10(peak))
        if self.measure == "peak":
            return self.level - peak_db
        loudness = loudness_lufs(audio, sample_rate)
        return 0.0 if loudness is None else min(self.level - loudness, LOUDEST_PEAK_DB - peak_db)


def loudness_lufs(audio: Samples, sample_rate: int) -> float | None:
    """Measure the integrated loudness of mono audio in LUFS, or None for audio below the gate of the measurement.

    Args:
        audio: Samples (n,), which are repeated if they are shorter than a block of 400 ms.
        sample_rate: Sample rate in Hz, at least 8000.
    """
    import pyloudnorm

    block = int(np.ceil(BLOCK_S * sample_rate)) + 1
    if len(audio) < block:
        audio = np.resize(audio, block)
    with np.errstate(divide="ignore", invalid="ignore"):
        loudness = float(
            pyloudnorm.Meter(sample_rate, block_size=BLOCK_S).integrated_loudness(audio.astype(np.float64))
        )
    return loudness if np.isfinite(loudness) else None


def with_gain(audio: Samples, gain_db: float) -> Samples:
    """Return audio with a gain in dB."""
    return audio if gain_db == 0 else (audio * np.float32(10 ** (gain_db / 20))).astype(np.float32)
