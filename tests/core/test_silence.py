"""Silent slices are left out, and a file without sound is refused with the reason.

The tests cover silence, dither, and channels that cancel each other.
"""

import io
from collections.abc import Callable

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from audiodiff_core import audio
from audiodiff_core.evaluation.embedders import items_of
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.mel.slices import SILENT_BELOW, SILENT_BELOW_DBFS, Slicing, mel_slices

Samples = npt.NDArray[np.float32]
Hum = Callable[..., Samples]
Wav = Callable[..., bytes]
CANCEL = "silent throughout: its channels cancel each other"


def file(samples: npt.NDArray[np.generic], rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=kind, subtype=subtype)
    return content.getvalue()


def m4a(samples: Samples, rate: int) -> bytes:
    """Encode stereo samples (n, 2) as ALAC in MP4, which only FFmpeg reads."""
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("alac", rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray((samples.T * 32_767).astype(np.int16)), format="s16p", layout="stereo"
        )
        frame.rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return content.getvalue()


def indices(source: bytes, mel: Mel, slicing: Slicing | None = None) -> list[int]:
    return [piece.index for piece in mel_slices(source, mel, slicing)]


def test_the_threshold_is_two_steps_of_16_bit_audio() -> None:
    assert SILENT_BELOW_DBFS == -84
    assert 2 / 32_768 < SILENT_BELOW < 2.1 / 32_768


@pytest.mark.parametrize("shape", ["sine", "square", "burst"])
def test_a_slice_is_silent_below_the_threshold_and_unchanged_from_it_on(
    tiny_mel: MelConfig, wav: Wav, shape: str
) -> None:
    mel, size = Mel(tiny_mel), tiny_mel.slice_size
    wave = np.sin(2 * np.pi * 441 * np.arange(size) / tiny_mel.sample_rate).astype(np.float32)
    square = np.sign(wave + 0.01)
    burst = np.where(np.arange(size) > 0.9 * size, square, 0)
    wave = {"sine": wave / np.abs(wave).max(), "square": square, "burst": burst}[shape].astype(np.float32)
    assert np.abs(wave).max() == 1
    samples = np.concatenate(
        [wave * np.nextafter(SILENT_BELOW, np.float32(0)), wave * SILENT_BELOW, -wave * SILENT_BELOW]
    )
    at_the_threshold, inverted = mel_slices(wav(samples), mel)
    assert (at_the_threshold.index, inverted.index) == (1, 2)
    np.testing.assert_array_equal(at_the_threshold.image, mel.images(samples[np.newaxis, size : 2 * size])[0][0])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("values", [(-1, 1), (-1, 0, 1), (-1, 0, 0, 0, 0, 0, 0, 1)])
def test_dither_of_16_bit_audio_is_silent_at_any_rate(
    tiny_mel: MelConfig, rate: int, channels: int, values: tuple[int, ...]
) -> None:
    dither = np.random.default_rng(0).choice(np.array(values, np.int16), (rate * 4, channels))
    assert indices(file(dither, rate), Mel(tiny_mel)) == []


def test_only_the_slices_of_dither_are_left_out(tiny_mel: MelConfig, hum: Hum) -> None:
    rate, size = 44_100, 2 * tiny_mel.slice_size
    music = np.round(hum(5 * size, sample_rate=rate) * 10_000).astype(np.int16)
    music[size : 4 * size] = np.random.default_rng(0).integers(-1, 2, 3 * size)
    kept = list(mel_slices(file(music, rate), Mel(tiny_mel)))
    assert [piece.index for piece in kept] == [0, 1, 3, 4], "the music rings in its neighbours when it is resampled"
    decoded = audio.decode_audio(file(music, rate), tiny_mel.sample_rate)
    for piece in kept:
        start = piece.index * tiny_mel.slice_size
        np.testing.assert_array_equal(
            piece.image, Mel(tiny_mel).images(decoded[np.newaxis, start : start + tiny_mel.slice_size])[0][0]
        )


def stereo(hum: Hum, seconds: float, rate: int = 44_100) -> Samples:
    left = hum(round(seconds * rate), sample_rate=rate) * np.float32(0.5)
    return np.stack([left, -left], axis=1)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", None), ("AIFF", None), ("CAF", None), ("MP3", None)],
)
def test_channels_that_cancel_each_other_are_the_reason(
    tiny_mel: MelConfig, hum: Hum, kind: str, subtype: str | None
) -> None:
    with pytest.raises(audio.AudioDecodeError, match=CANCEL):
        list(mel_slices(file(stereo(hum, 3), 44_100, kind, subtype), Mel(tiny_mel)))


def test_channels_that_cancel_each_other_are_the_reason_in_a_file_that_ffmpeg_reads(
    tiny_mel: MelConfig, hum: Hum
) -> None:
    with pytest.raises(audio.AudioDecodeError, match=CANCEL):
        list(mel_slices(m4a(stereo(hum, 3), 44_100), Mel(tiny_mel)))


def webm(samples: Samples, rate: int = 48_000) -> bytes:
    """Encode stereo samples (n, 2) as Opus.

    The encoder adds sound above 11 kHz to channels that cancel each other.
    """
    content = io.BytesIO()
    with av.open(content, "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=rate, layout="stereo")
        stream.bit_rate = 128_000
        for start in range(0, len(samples), 960):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[start : start + 960].reshape(1, -1)), format="flt", layout="stereo"
            )
            frame.rate, frame.pts = rate, start
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return content.getvalue()


@pytest.mark.parametrize("pitch_hz", [0, 440])
def test_a_residual_above_the_band_does_not_hide_the_reason(tiny_mel: MelConfig, pitch_hz: int) -> None:
    tone = 0.3 * np.sin(2 * np.pi * pitch_hz * np.arange(96_000) / 48_000)
    left = (np.random.default_rng(0).normal(0, 0.1, 96_000) + tone).astype(np.float32)
    source = webm(np.stack([left, -left], axis=1))
    assert np.abs(audio.decode_audio(source, 48_000)).max() > 0.05, "there is no residual"
    with pytest.raises(audio.AudioDecodeError, match=CANCEL):
        list(mel_slices(source, Mel(tiny_mel)))


def test_a_residual_below_the_threshold_does_not_hide_the_reason(tiny_mel: MelConfig, hum: Hum) -> None:
    samples = stereo(hum, 3)
    samples += np.random.default_rng(0).uniform(-3e-5, 3e-5, samples.shape).astype(np.float32)
    with pytest.raises(audio.AudioDecodeError, match=CANCEL):
        list(mel_slices(file(samples, 44_100, subtype="FLOAT"), Mel(tiny_mel)))


@pytest.mark.parametrize("signs", [(1, -1, 0, 0, 0, 0), (1, 1, -1, -1), (2, -1, -1)])
def test_more_than_two_channels_can_cancel_each_other(tiny_mel: MelConfig, hum: Hum, signs: tuple[int, ...]) -> None:
    samples = hum(60_000)[:, np.newaxis] * np.array(signs, np.float32) * np.float32(0.25)
    with pytest.raises(audio.AudioDecodeError, match=CANCEL):
        list(mel_slices(file(samples, 22_050, subtype="FLOAT"), Mel(tiny_mel)))


@pytest.mark.parametrize("rate", [22_050, 44_100])
def test_of_a_file_that_cancels_in_part_the_rest_stays(tiny_mel: MelConfig, hum: Hum, rate: int) -> None:
    size = tiny_mel.slice_size * rate // tiny_mel.sample_rate
    samples = stereo(hum, 5 * size / rate, rate)
    samples[:size, 1] *= -1
    samples[4 * size :, 1] = 0
    kept = indices(file(samples, rate), Mel(tiny_mel))
    assert kept == ([0, 4] if rate == tiny_mel.sample_rate else [0, 1, 3, 4]), (
        "the rest rings in its neighbours when it is resampled"
    )


def test_a_tail_that_is_dropped_does_not_hide_the_reason(tiny_mel: MelConfig, hum: Hum) -> None:
    samples = stereo(hum, 2.5 * tiny_mel.slice_duration_s, tiny_mel.sample_rate)
    samples[2 * tiny_mel.slice_size + 2_000 :, 1] *= -1
    with pytest.raises(audio.AudioDecodeError, match=CANCEL):
        list(mel_slices(file(samples, 22_050), Mel(tiny_mel)))


@pytest.mark.parametrize(
    "slicing", [Slicing(reference="track"), Slicing(overlap=0.5, tail="pad"), Slicing(silence_threshold_db=-60)]
)
def test_every_slicing_names_the_reason(tiny_mel: MelConfig, hum: Hum, slicing: Slicing) -> None:
    with pytest.raises(audio.AudioDecodeError, match=CANCEL):
        list(mel_slices(file(stereo(hum, 3), 44_100), Mel(tiny_mel), slicing))


def test_silence_and_inaudible_sound_do_not_cancel(tiny_mel: MelConfig) -> None:
    rate = 44_100
    above = np.sin(2 * np.pi * 18_000 * np.arange(3 * rate) / rate).astype(np.float32) * np.hanning(3 * rate).astype(
        np.float32
    )
    pairs: list[Samples] = [np.stack([above, above * np.float32(level)], axis=1) for level in (1, 0, 0.3)]
    for samples in (np.zeros((60_000, 2), np.float32), np.zeros(60_000, np.float32), above, *pairs):
        assert indices(file(samples, rate, subtype="FLOAT"), Mel(tiny_mel)) == []


def test_one_channel_alone_is_heard(tiny_mel: MelConfig, hum: Hum) -> None:
    samples = np.zeros((60_000, 8), np.float32)
    samples[:, 5] = hum(60_000)
    assert len(indices(file(samples, 22_050), Mel(tiny_mel))) == 60_000 // tiny_mel.slice_size


def test_embedders_leave_out_the_same_slices(tiny_mel: MelConfig, hum: Hum, wav: Wav) -> None:
    size = tiny_mel.slice_size
    samples = hum(3 * size)
    samples[size : 2 * size] *= np.float32(1e-5)
    slices, items = list(mel_slices(wav(samples), Mel(tiny_mel))), list(items_of(wav(samples), Mel(tiny_mel)))
    assert [piece.index for piece in slices] == [0, 2]
    for piece, item in zip(slices, items, strict=True):
        np.testing.assert_array_equal(piece.image, item.image)
        assert item.samples is not None
        np.testing.assert_array_equal(item.samples, samples[piece.index * size : (piece.index + 1) * size])
    with pytest.raises(audio.AudioDecodeError, match=CANCEL):
        list(items_of(file(stereo(hum, 3), 44_100), Mel(tiny_mel)))
