"""Levels of audio: peaks, loudness by ITU-R BS.1770, and gains that would clip."""

import numpy as np
import pytest

from audiodiff_core.audio import Samples
from audiodiff_core.loops.loudness import TargetLevel, loudness_lufs, with_gain

RATE = 48_000


def sine(seconds: float, amplitude: float = 0.25) -> Samples:
    return (amplitude * np.sin(2 * np.pi * 997 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def leveled(audio: Samples, text: str) -> Samples:
    return with_gain(audio, TargetLevel.parse(text).gain_db(audio, RATE))


def test_a_sine_has_the_loudness_of_the_standard() -> None:
    assert loudness_lufs(sine(2, 1.0), RATE) == pytest.approx(-3.01, abs=0.1)


@pytest.mark.parametrize(("text", "peak"), [("peak:-1", 10 ** (-1 / 20)), ("peak:0", 1.0), ("peak:-20", 0.1)])
def test_peaks(text: str, peak: float) -> None:
    assert np.abs(leveled(sine(1), text)).max() == pytest.approx(peak, rel=1e-5)


@pytest.mark.parametrize("audio", [sine(2), sine(2, 1e-3), sine(0.2)])
def test_loudness(audio: Samples) -> None:
    assert loudness_lufs(leveled(audio, "lufs:-23"), RATE) == pytest.approx(-23, abs=1e-3)


def test_short_audio_is_measured_as_if_it_were_repeated() -> None:
    assert loudness_lufs(sine(0.1), RATE) == pytest.approx(loudness_lufs(np.tile(sine(0.1), 5), RATE), abs=0.1)


def test_a_loudness_brings_no_peak_above_the_limit() -> None:
    clicks = np.zeros(RATE, np.float32)
    clicks[::4_800] = 0.5
    loud = leveled(clicks, "lufs:-14")
    assert np.abs(loud).max() == pytest.approx(10 ** (-1 / 20), rel=1e-5)
    assert (loudness_lufs(loud, RATE) or 0) < -14
    over = sine(1, 1.5)
    assert np.abs(leveled(over, "lufs:0")).max() == pytest.approx(10 ** (-1 / 20), rel=1e-5)


@pytest.mark.parametrize("text", ["peak:-1", "lufs:-14"])
def test_silence_keeps_its_level(text: str) -> None:
    for audio in (np.zeros(RATE, np.float32), np.zeros(3, np.float32), np.zeros(0, np.float32)):
        assert TargetLevel.parse(text).gain_db(audio, RATE) == 0
    assert TargetLevel.parse("lufs:-14").gain_db(sine(1, 1e-5), RATE) == 0, "below the gate of -70 LUFS"


@pytest.mark.parametrize("text", ["peak:3", "peak:-61", "peak", "peak:", "lufs:nan", "lufs:-14:1", "rms:-3", "-1"])
def test_other_levels_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"normalize {text}: must be peak:DB with -60 to 0"):
        TargetLevel.parse(text)


def test_a_low_rate_has_no_loudness() -> None:
    with pytest.raises(ValueError, match="normalize lufs:-14 at 4000 Hz: needs at least 8000 Hz"):
        TargetLevel.parse("lufs:-14").gain_db(sine(1), 4_000)
    assert str(TargetLevel.parse("lufs:-14.0")) == "lufs:-14"
