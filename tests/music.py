"""Synthesized music of a known tempo and key."""

import numpy as np

from audiodiff_core.audio import Samples
from audiodiff_core.audio.key_names import Mode

RATE = 22_050


def chords_at(bpm: float, root: int, mode: Mode, beats: int) -> Samples:
    """Return decaying triads on each beat, of the degrees I, IV, V and I in turn.

    Args:
        bpm: Tempo in beats per minute.
        root: MIDI note of the tonic.
        mode: Mode of the key.
        beats: Number of beats.
    """
    third = 3 if mode == "minor" else 4
    degrees = ([0, third, 7], [5, 5 + third, 12], [7, 11, 14], [0, third, 7])
    period = round(60 / bpm * RATE)
    beat = np.arange(period) / RATE
    played = [
        sum(np.sin(2 * np.pi * 440 * 2 ** ((root + note - 69) / 12) * beat) for note in degrees[number % 4])
        * np.exp(-8 * beat)
        for number in range(beats)
    ]
    audio: Samples = (0.2 * np.concatenate(played)).astype(np.float32)
    return audio
