"""Decoding gives librosa's numbers whatever the block size; bad sources are named; encoding is exact and repeatable."""

import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import fsspec
import librosa
import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from audiodiff_core import audio
from audiodiff_core.audio import AudioDecodeError, AudioFormat, decode, encode, stream

RATE = 22_050


def wav_header(channels: int, rate: int = 44_100) -> bytes:
    """A wav file of 4000 zero bytes whose header claims `channels` channels of 16 bits at `rate` Hz."""
    data = bytes(4_000)
    form = struct.pack("<IHHIIHH", 16, 1, channels, rate, 0, channels * 2 & 0xFFFF, 16)
    return b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + form + b"data" + struct.pack("<I", len(data)) + data


def write_aac(file: Path, samples: npt.NDArray[np.float32], rate: int) -> None:
    """`samples` (n,) as stereo AAC, in the container that the file's extension names."""
    container: Any = av.open(str(file), "w")
    with container:
        track = container.add_stream("aac", rate=rate, layout="stereo")
        for start in range(0, len(samples), 1_024):
            frame: Any = av.AudioFrame.from_ndarray(np.stack([samples[start : start + 1_024]] * 2), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, start
            container.mux(track.encode(frame))
        container.mux(track.encode(None))


@pytest.mark.parametrize("name", ["loop_mika.flac", "bass_hit_c.flac"])
def test_decode_is_librosa_bit_for_bit(loops: Path, name: str) -> None:
    assert soundfile.info(loops / name).channels == 2
    expected, _ = librosa.load(loops / name, sr=RATE, mono=True)
    decoded = decode(loops / name, RATE)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("rate", [8_000, 16_000, RATE, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 8])
def test_other_rates_and_channel_counts(wav: Callable[..., bytes], rate: int, channels: int) -> None:
    samples = np.random.default_rng(rate).uniform(-0.5, 0.5, (20_001, channels)).astype(np.float32)
    content = wav(samples, rate)
    expected, _ = librosa.load(io.BytesIO(content), sr=RATE, mono=True)
    np.testing.assert_array_equal(decode(content, RATE), expected)


@pytest.mark.parametrize("frames", [1_000, 44_099, 1 << 24])
def test_block_size_does_not_change_the_samples(loops: Path, monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    file = loops / "ambi_choir.flac"
    expected = decode(file, RATE)
    monkeypatch.setattr(audio, "BLOCK_FRAMES", frames)
    np.testing.assert_array_equal(decode(file, RATE), expected)
    if frames == 1_000:
        assert max(len(block) for block in stream(file, RATE)) < 5_000


def test_bytes_path_and_uri_are_the_same(loops: Path) -> None:
    file = loops / "ambi_choir.flac"
    expected = decode(str(file), RATE)
    with fsspec.open("memory://decode/choir.flac", "wb") as remote:
        remote.write(file.read_bytes())
    np.testing.assert_array_equal(decode(file.read_bytes(), RATE), expected)
    np.testing.assert_array_equal(decode("memory://decode/choir.flac", RATE), expected)
    np.testing.assert_array_equal(decode(f"file://{file}", RATE), expected)


@pytest.mark.parametrize("name", ["tone.m4a", "tone.aac"])
def test_aac_through_ffmpeg(tmp_path: Path, name: str) -> None:
    rate = 44_100
    tone = (0.4 * np.sin(2 * np.pi * 441 * np.arange(2 * rate) / rate)).astype(np.float32)
    write_aac(tmp_path / name, tone, rate)
    decoded = decode(tmp_path / name, RATE)
    assert abs(len(decoded) - 2 * RATE) < 0.1 * RATE
    middle = decoded[RATE // 2 : RATE // 2 + RATE]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(int(spectrum.argmax()) - 441) <= 1
    assert float(np.abs(middle).max()) == pytest.approx(0.4, rel=0.05)
    np.testing.assert_array_equal(decode((tmp_path / name).read_bytes(), RATE), decoded)


def _not_finite(wav: Callable[..., bytes], value: float) -> bytes:
    samples = np.zeros(4_000, np.float32)
    samples[2_000] = value
    return wav(samples, RATE)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda _wav, _loops: b"these are words, not samples\n" * 100, "not audio"),
        (lambda _wav, _loops: b"", "not audio"),
        (lambda _wav, loops: (loops / "loop_mika.flac").read_bytes()[:100_000], "cannot be decoded"),
        (lambda _wav, loops: (loops / "loop_mika.flac").read_bytes()[:9_000] + bytes(range(256)) * 400, "cannot be decoded"),
        (lambda wav, _loops: _not_finite(wav, np.nan), "NaN"),
        (lambda wav, _loops: _not_finite(wav, np.inf), "infinite"),
        (lambda wav, _loops: wav(np.zeros(0, np.float32)), "no samples"),
        (lambda _wav, _loops: wav_header(0), "channels"),
        (lambda _wav, _loops: wav_header(100), "claims 100 channels"),
        (lambda _wav, _loops: wav_header(60_000), "channels"),
        (lambda _wav, _loops: wav_header(1, rate=900), "claims a rate of 900 Hz"),
    ],
    ids=["text", "empty", "truncated-flac", "garbage-in-flac", "nan", "inf", "zero-length", "0-channels", "100-channels", "60000-channels", "900-hz"],
)
def test_unusable_audio_is_named(tmp_path: Path, loops: Path, wav: Callable[..., bytes], content: Callable[..., bytes], reason: str) -> None:
    file = tmp_path / "song.wav"
    file.write_bytes(content(wav, loops))
    with pytest.raises(AudioDecodeError) as raised:
        decode(file, RATE)
    assert raised.value.source == str(file)
    assert reason in raised.value.reason
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)
    with pytest.raises(AudioDecodeError) as raised:
        decode(file.read_bytes(), RATE)
    assert raised.value.source == "<bytes>"
    assert " at 0x" not in str(raised.value), "the same bytes have the same reason in every process"


def test_a_headerless_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "samples.raw").write_bytes(bytes(4_000))
    with pytest.raises(AudioDecodeError, match=r"samples\.raw"):
        decode(tmp_path / "samples.raw", RATE)


@pytest.mark.parametrize("name", ["été #1 50%20 [live]?.wav", "Artist::Song.wav", "12:30.wav"])
def test_any_file_name_can_be_read(tmp_path: Path, wav: Callable[..., bytes], hum: Callable[..., npt.NDArray[np.float32]], name: str) -> None:
    samples = hum(1_000)
    (tmp_path / name).write_bytes(wav(samples))
    np.testing.assert_array_equal(decode(tmp_path / name, RATE), samples)
    np.testing.assert_array_equal(decode(str(tmp_path / name), RATE), samples)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AudioDecodeError, match=r"absent\.wav"):
        decode(tmp_path / "absent.wav", RATE)


def test_decode_error_survives_pickling() -> None:
    restored = pickle.loads(pickle.dumps(AudioDecodeError("s3://bucket/song.mp3", "no samples")))
    assert isinstance(restored, AudioDecodeError)
    assert (restored.source, restored.reason) == ("s3://bucket/song.mp3", "no samples")
    assert str(restored) == "s3://bucket/song.mp3: no samples"


@pytest.mark.parametrize("file_format", ["wav", "flac"])
def test_encode_is_repeatable_and_exact_to_16_bits(file_format: AudioFormat) -> None:
    samples = np.concatenate([np.linspace(-1, 1, 10_001), np.random.default_rng(0).uniform(-1, 1, 10_000)]).astype(np.float32)
    content = encode(samples, RATE, file_format)
    assert encode(samples.copy(), RATE, file_format) == content
    info = soundfile.info(io.BytesIO(content))
    assert (info.format, info.subtype, info.samplerate, info.channels) == (file_format.upper(), "PCM_16", RATE, 1)
    decoded = decode(content, RATE)
    assert len(decoded) == len(samples)
    assert np.abs(decoded - samples).max() <= 1 / 32_767


def test_a_long_ogg_can_be_encoded(hum: Callable[..., npt.NDArray[np.float32]]) -> None:
    samples = np.tile(hum(RATE), 240)
    assert len(decode(encode(samples, RATE, "ogg"), RATE)) == len(samples)


@pytest.mark.parametrize("file_format", ["wav", "flac"])
def test_encode_clips_instead_of_wrapping(file_format: AudioFormat) -> None:
    loud = np.array([1.5, -1.5, 1.0, -1.0, 40.0, -40.0], np.float32).repeat(100)
    decoded = decode(encode(loud, RATE, file_format), RATE)
    np.testing.assert_allclose(decoded, np.sign(loud), atol=1 / 32_767)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("file_format", ["wav", "flac", "ogg", "mp3"])
def test_encode_refuses_what_is_not_finite(file_format: AudioFormat, value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        encode(np.array([0, value, 0], np.float32), RATE, file_format)


@pytest.mark.parametrize("file_format", ["ogg", "mp3"])
def test_lossy_formats_are_decodable(hum: Callable[..., npt.NDArray[np.float32]], file_format: AudioFormat) -> None:
    samples = hum(RATE)
    decoded = decode(encode(samples, RATE, file_format), RATE)
    assert abs(len(decoded) - len(samples)) < 0.1 * RATE
    spectrum = np.abs(np.fft.rfft(decoded[:RATE], RATE))
    assert abs(int(spectrum.argmax()) - 330) <= 1
