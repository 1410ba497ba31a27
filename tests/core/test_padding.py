"""Slices that are mostly padding, and the settings by which they are not."""

import re

import pytest

from audiodiff_core.mel import MelConfig
from audiodiff_core.padding import is_mostly_padding, shorter_slices

MEL = MelConfig(x_res=256, y_res=64, hop_length=512)


def test_half_a_slice_of_audio_is_enough() -> None:
    half = MEL.slice_duration_s / 2
    assert is_mostly_padding(MEL, half - 0.01)
    assert not is_mostly_padding(MEL, half)


@pytest.mark.parametrize("audio_s", [0.4, 1.0, 2.5])
def test_what_is_suggested_holds_slices_of_about_that_length(audio_s: float) -> None:
    options = shorter_slices(MEL, audio_s)
    assert len(options) == 2
    width, bands, hop_length = map(int, re.findall(r"\d+", " ".join(options)))
    assert (width % 8, bands) == (0, 64)
    for mel in (MEL.model_copy(update={"x_res": width}), MEL.model_copy(update={"hop_length": hop_length})):
        assert not is_mostly_padding(mel, audio_s)
        assert mel.slice_duration_s < audio_s + 8 * MEL.hop_length / MEL.sample_rate


def test_what_cannot_be_is_not_suggested() -> None:
    assert shorter_slices(MelConfig(x_res=8, y_res=64, hop_length=16), 0.001) == []
