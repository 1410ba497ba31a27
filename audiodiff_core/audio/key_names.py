"""Names of musical keys: the name that results state, such as `F# minor`, and other spellings of it."""

import re
from typing import Literal

TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
"""Names of the pitch classes, with sharps."""
Mode = Literal["major", "minor"]
MODES: tuple[Mode, ...] = ("major", "minor")

_STEPS = {"#": 1, "♯": 1, "sharp": 1, "b": -1, "♭": -1, "flat": -1, "": 0}
_SPELLING = re.compile(
    r"([A-G])(?:[\s-]*(?=sharp|flat))?(#|♯|b|♭|sharp|flat|)(?:[\s-]*(major|maj|minor|min|(?-i:m)))?",
    re.IGNORECASE | re.ASCII,
)


def key_parts(text: str) -> tuple[int, Mode]:
    """Return the pitch class of the tonic, 0 (C) to 11 (B), and the mode of a key.

    Args:
        text: A tonic with or without an accidental, such as F#, Gb or F sharp, and a mode: major, maj, minor, min, m,
            or none for major. Upper and lower case are equal, except that a mode of one letter is m. Hyphens may
            separate the parts, as in names of files.

    Raises:
        ValueError: The text is not the name of a key.
    """
    spelled = _SPELLING.fullmatch(text.strip())
    if spelled is None:
        raise ValueError(f"key {text}: use a tonic and a mode, such as C, Am, F# minor or Bb major")
    letter, accidental, mode = spelled.groups("")
    pitch_class = (TONICS.index(letter.upper()) + _STEPS[accidental.lower()]) % len(TONICS)
    return pitch_class, "minor" if mode.lower() in ("m", "min", "minor") else "major"


def key_name(text: str) -> str:
    """Return the name of a key, such as `F# minor`, for any spelling. See `key_parts`."""
    pitch_class, mode = key_parts(text)
    return f"{TONICS[pitch_class]} {mode}"
