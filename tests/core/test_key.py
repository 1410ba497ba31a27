"""Key: all keys of synthesized music in any tuning, and no key for noise, clicks, silence and single tones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from audiodiff_core.audio import Samples, decode_audio
from audiodiff_core.audio.key_names import TONICS, Mode
from audiodiff_core.loops.key import Key, measure_key

RATE = 22_050


def chord(notes: list[int], seconds: float, tuning: float = 0.0, partials: int = 6) -> Samples:
    """Return decaying tones with partials at MIDI notes, which `tuning` raises by semitones."""
    times = np.arange(int(seconds * RATE)) / RATE
    tones = [
        np.sin(2 * np.pi * 440 * 2 ** ((note + tuning - 69) / 12) * partial * times) / partial
        for note in notes
        for partial in range(1, partials + 1)
    ]
    audio: Samples = (np.sum(tones, axis=0) * np.exp(-2 * times)).astype(np.float32)
    return audio


def cadence(root: int, mode: Mode, tuning: float) -> Samples:
    """Return the chords of degrees I, IV, V and I, with the leading note in minor too."""
    third = 3 if mode == "minor" else 4
    degrees = ([0, third, 7], [5, 5 + third, 12], [7, 11, 14], [0, third, 7])
    return np.concatenate([chord([root + step for step in steps], 0.4, tuning) for steps in degrees])


def scale(root: int, mode: Mode, tuning: float) -> Samples:
    steps = (0, 2, 3, 5, 7, 8, 11, 12, 0) if mode == "minor" else (0, 2, 4, 5, 7, 9, 11, 12, 0)
    return np.concatenate([chord([root + step], 0.25, tuning) for step in steps])


def triad(root: int, mode: Mode, tuning: float) -> Samples:
    return chord([root, root + (3 if mode == "minor" else 4), root + 7], 1.5, tuning, partials=12)


@pytest.mark.parametrize("tuning", [0.0, 0.4])
@pytest.mark.parametrize("music", [cadence, scale, triad])
def test_all_keys_are_found(music: Callable[[int, Mode, float], Samples], tuning: float) -> None:
    modes: tuple[Mode, ...] = ("major", "minor")
    for mode in modes:
        for step, tonic in enumerate(TONICS):
            key = measure_key(music(48 + step, mode, tuning), RATE)
            assert key.name == f"{tonic} {mode}", key
            assert 0.5 < key.confidence <= 1


def test_the_level_is_no_matter_and_symbols_are_short() -> None:
    key = measure_key(cadence(54, "minor", 0.0), RATE)
    assert (key.name, key.symbol) == ("F# minor", "F#m")
    assert measure_key(cadence(54, "minor", 0.0) * np.float32(1e-3), RATE).name == key.name
    assert (measure_key(triad(48, "major", 0.0), RATE).symbol, Key(None, None, 0.1).symbol) == ("C", None)


def without_key() -> dict[str, Samples]:
    generator = np.random.default_rng(0)
    noise = generator.standard_normal(5 * RATE).astype(np.float32)
    clicks = np.zeros(5 * RATE, np.float32)
    clicks[:: RATE // 2] = 1
    decay = np.exp(-np.arange(RATE // 4) / 800).astype(np.float32)
    drums = np.tile(np.concatenate([noise[: RATE // 4] * decay, np.zeros(RATE // 4, np.float32)]), 8)
    return {
        "noise": noise,
        "one second of noise": noise[:RATE],
        "clicks": clicks,
        "drums": drums,
        "brown noise": np.cumsum(noise).astype(np.float32),
        "silence": np.zeros(RATE, np.float32),
        "a constant": np.full(RATE, 0.5, np.float32),
        "a single tone": chord([57], 2.0, partials=1),
        "a fifth, which has no mode": chord([57, 64], 2.0, partials=1),
        "less than a spectrum": triad(48, "major", 0.0)[: RATE // 4],
        "one sample": np.ones(1, np.float32),
    }


@pytest.mark.parametrize("name", without_key())
def test_what_has_no_key(name: str) -> None:
    key = measure_key(without_key()[name], RATE)
    assert (key.tonic, key.mode, key.name) == (None, None, None), key
    assert 0 <= key.confidence < 0.35


@pytest.mark.parametrize(
    ("name", "expected"),
    [("guit_em9", "E minor"), ("loop_industrial", None), ("loop_compus", None), ("ambi_lunar_land", None)],
)
def test_real_loops(loops: Path, name: str, expected: str | None) -> None:
    assert measure_key(decode_audio(loops / f"{name}.flac", RATE), RATE).name == expected


def test_long_audio_is_measured_in_blocks() -> None:
    music = cadence(50, "major", 0.0)
    long = np.tile(music, 20)
    assert measure_key(long, RATE).name == measure_key(music, RATE).name == "D major"


def test_wrong_audio_is_named() -> None:
    with pytest.raises(ValueError, match="must be mono"):
        measure_key(np.zeros((2, 9), np.float32), RATE)
    with pytest.raises(ValueError, match="NaN or infinite"):
        measure_key(np.full(9, np.nan, np.float32), RATE)
