"""Slices that are mostly padding: files shorter than a slice, of which images show silence more than sound."""

import pydantic

from audiodiff_core.mel import MelConfig

MOSTLY = 0.5
"""Share of a slice from which on its padding is most of it."""
SIDE_MULTIPLE = 8
"""Networks take image sides that divide by this number."""


def is_mostly_padding(mel: MelConfig, audio_s: float) -> bool:
    """Return True if a slice with `audio_s` seconds of audio holds less audio than padding."""
    return audio_s < (1 - MOSTLY) * mel.slice_duration_s


def shorter_slices(mel: MelConfig, audio_s: float) -> list[str]:
    """Return the options of prepare, each by itself, by which slices last about `audio_s` seconds."""
    frames = audio_s * mel.sample_rate / mel.hop_length
    width = max(SIDE_MULTIPLE, int(frames / SIDE_MULTIPLE) * SIDE_MULTIPLE)
    hop_length = int(audio_s * mel.sample_rate / mel.x_res)
    changes = {f"--resolution {width},{mel.y_res}": {"x_res": width}, f"--hop_length {hop_length}": {"hop_length": hop_length}}
    return [option for option, change in changes.items() if _is_possible(mel, change)]


def _is_possible(mel: MelConfig, change: dict[str, int]) -> bool:
    try:
        return MelConfig.model_validate({**mel.model_dump(), **change}).slice_size < mel.slice_size
    except pydantic.ValidationError:
        return False
