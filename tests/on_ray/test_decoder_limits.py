"""Limits of a decoder per file: they follow its size and stated length and fit any usable file."""

import numpy as np
import pytest

from audiodiff_core.mel import MelConfig
from audiodiff_core.mel.png import encode_png
from audiodiff_core.mel.slices import Slicing
from audiodiff_platform.decoder.limits import Limits, spool_of_items, spool_of_slices

MINUTE_OF_CD = 60 * 176_400
DEFAULT = MelConfig()


def test_time_follows_the_stated_length_as_far_as_the_size_bears_it_out() -> None:
    limit = Limits().time(17 * 24_000)
    assert (limit.seconds(17), limit.basis(17)) == (94, "its stated duration of 17 s")
    assert (limit.seconds(1e9), limit.basis(1e9)) == (60 + 2 * 17 * 24_000 / 500, "a file of its size")
    of_many_parts = Limits().time(MINUTE_OF_CD)
    assert (of_many_parts.seconds(1), of_many_parts.basis(1)) == (180, "a file of its size")
    assert of_many_parts.before_header == 180
    assert (of_many_parts.seconds(None), of_many_parts.basis(None)) == (
        60 + 2 * MINUTE_OF_CD / 8_000,
        "a file of its size",
    )


@pytest.mark.parametrize(
    "bytes_per_second", [600, 1_000, 12_000, 176_400, 1_152_000], ids=["AMR", "MP3 of 8 kbit/s", "Opus", "CD", "96 kHz"]
)
def test_an_hour_of_any_format_has_its_time(bytes_per_second: int) -> None:
    assert Limits().time(3_600 * bytes_per_second).seconds(3_600) >= 2 * 3_600
    assert Limits().time(3_600 * max(1_000, bytes_per_second)).seconds(None) >= 3_600 / 4


def test_time_grows_with_the_work_of_slicing() -> None:
    def per_second(mel: MelConfig, slicing: Slicing) -> float:
        return Limits().time(0, mel, slicing).per_second

    once = per_second(DEFAULT, Slicing())
    assert 2 < once < 2.2
    assert per_second(DEFAULT, Slicing(reference="track")) == pytest.approx(2 * once)
    assert per_second(DEFAULT, Slicing(overlap=0.99)) == pytest.approx(2 + 100 * (once - 2), rel=0.01)
    assert Limits().time(0, MelConfig(x_res=16_384, n_fft=32_768, hop_length=16_384)).base_s > 500, (
        "one slice of 3 hours"
    )


def test_memory_grows_with_the_slice_and_the_filterbank() -> None:
    filterbank = 24 * 256 * 1_025
    assert Limits.of(DEFAULT).memory_bytes == Limits().memory_bytes + 64 * DEFAULT.slice_size + filterbank


def test_spools_hold_what_the_decoded_audio_may_give() -> None:
    mel = MelConfig(x_res=8, y_res=64, hop_length=16)
    audio_bytes = 2 * 1_000  # one second at the lowest rate
    images = np.random.default_rng(0).integers(0, 256, (22_050 // mel.slice_size + 1, 64, 8), np.uint8)
    for slicing in (Slicing(), Slicing(overlap=0.5)):
        count = len(images) * round(1 / (1 - slicing.overlap))
        assert spool_of_slices(audio_bytes, mel, slicing) >= count * max(len(encode_png(image)) for image in images)
    assert spool_of_items(audio_bytes, mel) >= len(images) * (images[0].nbytes + 4 * mel.slice_size)
