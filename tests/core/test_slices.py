"""Slices with the original's boundaries and gaps, however the file is read, and lossless PNG files."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from audiodiff_core import audio
from audiodiff_core.audio import blocks
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.mel.slices import MelSlice, Slicing, mel_slices

Hum = Callable[..., npt.NDArray[np.float32]]
Wav = Callable[..., bytes]


def cut(mel: Mel, samples: npt.NDArray[np.float32], start: int) -> npt.NDArray[np.uint8]:
    """Return the image of the slice that starts at sample `start`."""
    images, _ = mel.images(samples[np.newaxis, start : start + mel.config.slice_size])
    image: npt.NDArray[np.uint8] = images[0]
    return image


def assert_slices_of(
    mel: Mel, samples: npt.NDArray[np.float32], slices: list[MelSlice], starts: dict[int, int]
) -> None:
    """Assert that `slices` have exactly the indices and starts (in samples) of `starts`."""
    assert [piece.index for piece in slices] == list(starts)
    for piece, start in zip(slices, starts.values(), strict=True):
        assert piece.start_s == pytest.approx(start / mel.config.sample_rate)
        np.testing.assert_array_equal(piece.image, cut(mel, samples, start))


def test_boundaries_are_the_originals_and_the_tail_is_dropped(tiny_mel: MelConfig, hum: Hum, wav: Wav) -> None:
    mel, size = Mel(tiny_mel), tiny_mel.slice_size
    samples = hum(4 * size - 1)
    assert_slices_of(mel, samples, list(mel_slices(wav(samples), mel)), {0: 0, 1: size, 2: 2 * size})


def test_exactly_whole_slices(tiny_mel: MelConfig, hum: Hum, wav: Wav) -> None:
    mel, size = Mel(tiny_mel), tiny_mel.slice_size
    samples = hum(2 * size)
    assert_slices_of(mel, samples, list(mel_slices(wav(samples), mel)), {0: 0, 1: size})


@pytest.mark.parametrize("missing", [1, 2_000])
def test_audio_shorter_than_a_slice_is_one_padded_slice(tiny_mel: MelConfig, hum: Hum, wav: Wav, missing: int) -> None:
    mel = Mel(tiny_mel)
    samples = hum(tiny_mel.slice_size - missing)
    assert_slices_of(mel, np.pad(samples, (0, missing)), list(mel_slices(wav(samples), mel)), {0: 0})


def test_silent_slices_leave_gaps_in_the_index(tiny_mel: MelConfig, hum: Hum, wav: Wav) -> None:
    mel, size = Mel(tiny_mel), tiny_mel.slice_size
    samples = hum(4 * size)
    samples[size : 3 * size] = 0
    assert_slices_of(mel, samples, list(mel_slices(wav(samples), mel)), {0: 0, 3: 3 * size})


@pytest.mark.parametrize("slices", [0.5, 3])
def test_a_silent_file_has_no_slices(tiny_mel: MelConfig, wav: Wav, slices: float) -> None:
    assert list(mel_slices(wav(np.zeros(int(slices * tiny_mel.slice_size), np.float32)), Mel(tiny_mel))) == []


def test_level_is_that_of_the_slice(tiny_mel: MelConfig, hum: Hum, wav: Wav) -> None:
    size = tiny_mel.slice_size
    samples = np.tile(hum(size), 2)
    samples[size:] *= 0.1
    loud, quiet = mel_slices(wav(samples), Mel(tiny_mel))
    assert loud.reference_db - quiet.reference_db == pytest.approx(20, abs=1e-3)


def test_overlap(tiny_mel: MelConfig, hum: Hum, wav: Wav) -> None:
    mel, size = Mel(tiny_mel), tiny_mel.slice_size
    samples, step = hum(2 * size), mel.slice_step(0.75)
    slices = list(mel_slices(wav(samples), mel, Slicing(overlap=0.75)))
    assert_slices_of(mel, samples, slices, {index: index * step for index in range((len(samples) - size) // step + 1)})
    assert len(slices) == 4


@pytest.mark.parametrize("frames", [100, 4_095, 1 << 20])
@pytest.mark.parametrize("overlap", [0.0, 0.6])
def test_streaming_is_the_same_as_the_whole_file(
    tiny_mel: MelConfig, hum: Hum, wav: Wav, monkeypatch: pytest.MonkeyPatch, frames: int, overlap: float
) -> None:
    mel = Mel(tiny_mel)
    content = wav(hum(40_000, sample_rate=32_000), 32_000)
    monkeypatch.setattr(blocks, "BLOCK_FRAMES", frames)
    samples = audio.decode_audio(content, tiny_mel.sample_rate)
    step = mel.slice_step(overlap)
    starts = range(0, len(samples) - tiny_mel.slice_size + 1, step)
    assert len(starts) >= 6
    assert_slices_of(mel, samples, list(mel_slices(content, mel, Slicing(overlap=overlap))), dict(enumerate(starts)))


def test_a_file_that_breaks_off_raises_after_its_good_slices(tiny_mel: MelConfig, hum: Hum, wav: Wav) -> None:
    samples = hum(200_000)
    samples[-1] = np.nan
    slices = mel_slices(wav(samples), Mel(tiny_mel))
    assert next(slices).index == 0
    with pytest.raises(audio.AudioDecodeError, match="NaN"):
        list(slices)


@pytest.mark.parametrize("overlap", [0.0, 0.75])
def test_a_padded_tail_holds_the_rest_once(tiny_mel: MelConfig, hum: Hum, wav: Wav, overlap: float) -> None:
    mel, size, step = Mel(tiny_mel), tiny_mel.slice_size, Mel(tiny_mel).slice_step(overlap)
    samples = hum(2 * size + 10)
    slices = list(mel_slices(wav(samples), mel, Slicing(overlap=overlap, tail="pad")))
    starts = {index: index * step for index in range((len(samples) - size) // step + 2)}
    assert_slices_of(mel, np.pad(samples, (0, size)), slices, starts)
    rest = len(samples) - list(starts.values())[-1]
    assert slices[-1].duration_s == pytest.approx(rest / tiny_mel.sample_rate)
    assert {piece.duration_s for piece in slices[:-1]} == {tiny_mel.slice_duration_s}


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_no_tail_is_padded_where_slices_reach_the_end(tiny_mel: MelConfig, hum: Hum, wav: Wav, overlap: float) -> None:
    mel = Mel(tiny_mel)
    samples = hum(tiny_mel.slice_size + 2 * mel.slice_step(overlap))
    cut, padded = (list(mel_slices(wav(samples), mel, Slicing(overlap=overlap, tail=tail))) for tail in ("drop", "pad"))
    assert len(padded) == len(cut) == 3


def test_a_silence_threshold_leaves_quiet_slices_out(tiny_mel: MelConfig, hum: Hum, wav: Wav) -> None:
    mel, size = Mel(tiny_mel), tiny_mel.slice_size
    samples = np.tile(hum(size), 3)
    samples[size : 2 * size] *= 0.01
    level = 20 * np.log10(np.sqrt(np.mean(samples[:size] ** 2)))
    assert [piece.index for piece in mel_slices(wav(samples), mel)] == [0, 1, 2]
    assert [piece.index for piece in mel_slices(wav(samples), mel, Slicing(silence_threshold_db=level - 39))] == [0, 2]
    assert [piece.index for piece in mel_slices(wav(samples), mel, Slicing(silence_threshold_db=level - 41))] == [
        0,
        1,
        2,
    ]


def test_a_track_reference_keeps_loudness_between_slices(tiny_mel: MelConfig, hum: Hum, wav: Wav) -> None:
    mel, size = Mel(tiny_mel), tiny_mel.slice_size
    samples = np.concatenate([hum(size) * 0.1, hum(size), np.zeros(size, np.float32)])
    quiet, loud = mel_slices(wav(samples), mel, Slicing(reference="track"))  # the silent slice is left out
    assert (quiet.index, loud.index) == (0, 1)
    assert quiet.reference_db == loud.reference_db == pytest.approx(list(mel_slices(wav(samples), mel))[1].reference_db)
    assert loud.image.max() == 255
    assert (255 - int(quiet.image.max())) * tiny_mel.top_db / 255 == pytest.approx(20, abs=0.5)
