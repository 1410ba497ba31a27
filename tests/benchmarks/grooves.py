"""Synthesized recordings of a known tempo and key, which `tests.benchmarks.conditions` trains on.

A recording has a steady beat of drums (kick, snare, hi-hat) and plucked chords of a key: its triad on every beat, and
its tonic with another note of its scale between the beats. Timbre, levels, octave and melody differ between recordings.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from audiodiff_core.audio import Samples
from audiodiff_core.audio.key_names import MODES, TONICS

Sound = npt.NDArray[np.floating]

TEMPOS_BPM = (75.0, 165.0)
DURATION_S = 13.0
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
C5_HZ = 523.25
LEAD = 1.5
"""Amplitude of the tonic relative to the other notes."""


def write_grooves(folder: Path, count: int, sample_rate: int) -> None:
    """Write `count` FLAC files of random tempos, whose keys take turns."""
    for number in range(count):
        rng = np.random.default_rng(number)
        bpm = float(np.exp(rng.uniform(*np.log(TEMPOS_BPM))))
        tonic, mode = number % len(TONICS), MODES[number // len(TONICS) % len(MODES)]
        audio = groove(bpm, tonic, mode, sample_rate, rng)
        soundfile.write(folder / f"{number:04d}.flac", audio, sample_rate)


def groove(bpm: float, tonic: int, mode: str, sample_rate: int, rng: np.random.Generator) -> Samples:
    """Synthesize a recording.

    Args:
        bpm: Tempo in beats per minute.
        tonic: Pitch class of the tonic, from C.
        mode: Mode of the key, `major` or `minor`.
        sample_rate: Sample rate in Hz.
        rng: Source of timbre, levels, octave and melody.

    Returns:
        Mono samples in [-0.9, 0.9].
    """
    audio = np.zeros(round(DURATION_S * sample_rate))
    kick = _kick(sample_rate, rng)
    snare = _noise(sample_rate, 0.12, rng) * rng.uniform(0.2, 0.5)
    hat = np.diff(_noise(sample_rate, 0.03, rng)) * rng.uniform(0.05, 0.2)
    partials = rng.uniform(0.1, 0.6) ** np.arange(4)
    decay_s, level = rng.uniform(0.15, 0.4), rng.uniform(0.2, 0.4)
    root = tonic - 12 * int(rng.integers(0, 2))
    scale = [root + degree for degree in SCALES[mode]]
    tonic_note, *others = (_pluck(note, partials, decay_s, sample_rate) for note in (scale[0], scale[2], scale[4]))
    triad = [LEAD * tonic_note, *others]
    beat_s = 60.0 / bpm
    for beat in range(int(DURATION_S / beat_s)):
        at = beat * beat_s
        _add(audio, kick if beat % 2 == 0 else snare, at, sample_rate)
        _add(audio, 0.4 * kick, at, sample_rate)
        _add(audio, hat, at + beat_s / 2, sample_rate)
        for note in triad:
            _add(audio, level * note, at, sample_rate)
        other = _pluck(scale[rng.integers(1, len(scale))], partials, decay_s, sample_rate)
        for note in (triad[0], other):
            _add(audio, 0.7 * level * note, at + beat_s / 2, sample_rate)
    samples: Samples = (0.9 * audio / np.abs(audio).max()).astype(np.float32)
    return samples


def _times(sample_rate: int, duration_s: float) -> Sound:
    return np.arange(round(duration_s * sample_rate)) / sample_rate


def _kick(sample_rate: int, rng: np.random.Generator) -> Sound:
    times = _times(sample_rate, 0.15)
    sweep_hz = rng.uniform(45, 70) + 120 * np.exp(-times / 0.02)
    kick: Sound = np.sin(2 * np.pi * np.cumsum(sweep_hz) / sample_rate) * np.exp(-times / 0.05)
    return kick


def _noise(sample_rate: int, duration_s: float, rng: np.random.Generator) -> Sound:
    times = _times(sample_rate, duration_s)
    noise: Sound = rng.standard_normal(len(times)) * np.exp(-times / (duration_s / 4))
    return noise


def _pluck(semitones: int, partials: Sound, decay_s: float, sample_rate: int) -> Sound:
    """Synthesize a note `semitones` above C5."""
    times = _times(sample_rate, 3 * decay_s)
    frequency_hz = C5_HZ * 2 ** (semitones / 12)
    harmonics = (level * np.sin(2 * np.pi * frequency_hz * (n + 1) * times) for n, level in enumerate(partials))
    pluck: Sound = np.sum(list(harmonics), axis=0) * np.exp(-times / decay_s)
    return pluck


def _add(audio: Sound, sound: Sound, at_s: float, sample_rate: int) -> None:
    """Add a sound in place, cut at the end."""
    start = round(at_s * sample_rate)
    room = audio[start : start + len(sound)]
    room += sound[: len(room)]
