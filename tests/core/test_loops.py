"""Tempo, seam and level of signals whose answers are known."""

import numpy as np
import numpy.typing as npt
import pytest

from audiodiff_core.loops import level_db, seam_score, tempo_bpm

RATE = 22_050


def sine(seconds: float, hertz: float) -> npt.NDArray[np.float32]:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)


def test_tempo_of_a_click_track() -> None:
    clicks = np.zeros(8 * RATE, np.float32)
    decay = (np.random.default_rng(0).standard_normal(1_000) * np.exp(-np.arange(1_000) / 150)).astype(np.float32)
    for beat in range(16):
        start = beat * RATE // 2
        clicks[start : start + 1_000] += decay
    assert tempo_bpm(clicks, RATE) == pytest.approx(120, rel=0.03)


def test_seam_of_whole_periods_is_not_heard() -> None:
    assert seam_score(sine(2, 441), RATE) <= 1.05


def test_seam_of_a_jump_is_heard() -> None:
    rising = sine(2, 441) * np.linspace(0, 1, 2 * RATE, dtype=np.float32)
    assert seam_score(rising, RATE) > 3
    two_tones = np.concatenate([sine(1, 300), sine(1, 3_000)])
    assert seam_score(two_tones, RATE) > 3


def test_seam_of_a_rotated_jump_is_not_heard() -> None:
    two_tones = np.concatenate([sine(1, 300), sine(1, 3_000)])
    assert seam_score(np.roll(two_tones, RATE // 2), RATE) < 1.05


def test_seam_of_silence_is_zero() -> None:
    assert seam_score(np.zeros(RATE, np.float32), RATE) == 0


def test_seam_of_too_little_audio_is_refused() -> None:
    with pytest.raises(ValueError, match="audio of 1000 samples"):
        seam_score(np.zeros(1_000, np.float32), RATE)


def test_level() -> None:
    assert level_db(sine(1, 441)) == pytest.approx(-3.01, abs=0.01)
    assert level_db(sine(1, 441) * np.float32(0.1)) == pytest.approx(-23.01, abs=0.01)
    assert level_db(np.ones(100, np.float32)) == pytest.approx(0)
    assert level_db(np.zeros(100, np.float32)) == pytest.approx(-200)
