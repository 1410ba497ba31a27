"""Decoding and encoding of audio.

Decoded samples equal librosa's for every block size. Errors name bad and truncated sources. Encoding is exact and
repeatable.
"""

import io
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import av
import fsspec
import librosa
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from av.stream import Disposition

from audiodiff_core.audio import (
    BYTES_PER_SAMPLE,
    AudioDecodeError,
    AudioFormat,
    blocks,
    decode_audio,
    encode_audio,
    stream,
)
from audiodiff_core.audio.containers import UNKNOWN_FRAMES
from tests.rare import rare

RATE = 22_050


def wav_header(channels: int, rate: int = 44_100) -> bytes:
    """Return a WAV file of 4000 zero bytes with a header for 16 bits, `channels` channels and `rate` Hz."""
    data = bytes(4_000)
    form = struct.pack("<IHHIIHH", 16, 1, channels, rate, 0, channels * 2 & 0xFFFF, 16)
    return (
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + form + b"data" + struct.pack("<I", len(data)) + data
    )


def tone(frequency_hz: float, rate: int = 44_100) -> npt.NDArray[np.float32]:
    """Return two seconds of a sine."""
    return (0.4 * np.sin(2 * np.pi * frequency_hz * np.arange(2 * rate) / rate)).astype(np.float32)


def wav_sizes(content: bytes, riff: int, data: int) -> bytes:
    """Return a 16-bit WAV file with the given sizes in its header."""
    return content[:4] + struct.pack("<I", riff) + content[8:40] + struct.pack("<I", data) + content[44:]


def write_aac(
    file: Path, *tracks: npt.NDArray[np.float32], rate: int = 44_100, picture: str = "", **options: str
) -> None:
    """Write each of `tracks` (n,) as a stereo AAC stream, in the container of the file's extension.

    `picture` is the codec of a video track, or "cover" for cover art.
    """
    container: Any = av.open(str(file), "w", format="mp4" if picture else None, options=options)
    with container:
        if picture:
            video = container.add_stream("mjpeg" if picture == "cover" else picture, rate=5)
            video.width, video.height, video.pix_fmt = 64, 64, "yuvj420p" if picture == "cover" else "yuv420p"
            if picture == "cover":
                video.disposition = Disposition.attached_pic
        sounds = [container.add_stream("aac", rate=rate, layout="stereo") for _ in tracks]
        if picture:
            for number in range(1 if picture == "cover" else 10):
                image: Any = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * number, np.uint8), format="rgb24")
                image.pts = number
                container.mux(video.encode(image))
            container.mux(video.encode(None))
        for start in range(0, len(tracks[0]), 1_024):
            for samples, sound in zip(tracks, sounds, strict=True):
                frame: Any = av.AudioFrame.from_ndarray(
                    np.stack([samples[start : start + 1_024]] * 2), format="fltp", layout="stereo"
                )
                frame.sample_rate, frame.pts = rate, start
                container.mux(sound.encode(frame))
        for sound in sounds:
            container.mux(sound.encode(None))


def pitch_hz(samples: npt.NDArray[np.float32]) -> int:
    """Return the strongest frequency, in Hz, of one second in the middle of `samples` at RATE."""
    middle = samples[RATE // 2 : RATE // 2 + RATE]
    return int(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax())


@pytest.mark.parametrize("name", ["loop_mika.flac", "bass_hit_c.flac"])
def test_decode_is_librosa_bit_for_bit(loops: Path, name: str) -> None:
    assert soundfile.info(loops / name).channels == 2
    expected, _ = librosa.load(loops / name, sr=RATE, mono=True)
    decoded = decode_audio(loops / name, RATE)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("song.mp3", "MPEG_LAYER_III"),
        ("song.ogg", "VORBIS"),
        ("song.opus", "OPUS"),
        ("song.aiff", "PCM_24"),
        ("song.wav", "ULAW"),
    ],
)
def test_files_of_many_blocks_are_librosas(
    tmp_path: Path, loops: Path, monkeypatch: pytest.MonkeyPatch, name: str, subtype: str
) -> None:
    samples, rate = soundfile.read(loops / "loop_mika.flac", dtype="float32")
    file = tmp_path / name
    with soundfile.SoundFile(
        file, "w", 48_000 if subtype == "OPUS" else rate, 2, subtype, format="OGG" if subtype == "OPUS" else None
    ) as sound:
        for start in range(0, len(samples), 10_000):
            sound.write(samples[start : start + 10_000])
    monkeypatch.setattr(blocks, "BLOCK_FRAMES", 10_000)
    expected, _ = librosa.load(file, sr=RATE, mono=True)
    np.testing.assert_array_equal(decode_audio(file, RATE), expected)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 100, 5_000, 40_000, 200_001])
def test_vorbis_is_libsndfiles_to_the_sample(channels: int, length: int) -> None:
    samples = np.random.default_rng(length).uniform(-0.5, 0.5, (length, channels)).astype(np.float32)
    content = vorbis(samples)
    expected, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    assert len(expected) == length
    np.testing.assert_allclose(decode_audio(content, RATE), expected.mean(axis=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 16_000, RATE, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 3, 8, 64, 1_024])
def test_other_rates_and_channel_counts(wav: Callable[..., bytes], rate: int, channels: int) -> None:
    samples = (
        np.random.default_rng(rate)
        .uniform(-0.5, 0.5, (20_001 if channels < 64 else 1_001, channels))
        .astype(np.float32)
    )
    content = wav(samples, rate)
    expected, _ = librosa.load(io.BytesIO(content), sr=RATE, mono=True)
    np.testing.assert_array_equal(decode_audio(content, RATE), expected)


@pytest.mark.parametrize("frames", [1_000, 44_099, 1 << 24])
def test_block_size_does_not_change_the_samples(loops: Path, monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    file = loops / "ambi_choir.flac"
    expected = decode_audio(file, RATE)
    monkeypatch.setattr(blocks, "BLOCK_FRAMES", frames)
    np.testing.assert_array_equal(decode_audio(file, RATE), expected)
    if frames == 1_000:
        assert max(len(block) for block in stream(file, RATE)) < 5_000


READ_TWO = """
import resource, sys
from audiodiff_core.audio import stream

for file in sys.argv[1:]:
    samples = longest = 0
    for block in stream(file, 22050):
        samples, longest = samples + len(block), max(longest, len(block))
    print(samples, longest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.parametrize("hours", [rare(1), pytest.param(10, marks=pytest.mark.soak)])
def test_a_file_of_hours_takes_the_memory_of_ten_minutes(tmp_path: Path, hours: int) -> None:
    files = {}
    for seconds in (600, hours * 3_600):
        size = seconds * 8_000 * 2
        files[seconds] = tmp_path / f"{seconds}.wav"
        with files[seconds].open("wb") as content:  # sparse: the zeros take no disk space
            content.write(wav_sizes(wav_header(1, 8_000), size + 36, size)[:44])
            content.truncate(44 + size)
    completed = subprocess.run(
        [sys.executable, "-c", READ_TWO, *map(str, files.values())], capture_output=True, text=True, check=True
    )
    short, long = ([int(number) for number in line.split()] for line in completed.stdout.splitlines())
    assert [short[0], long[0]] == [seconds * 22_050 for seconds in files]
    assert long[1] == short[1] < 500_000
    assert long[2] - short[2] < 20, "MB"


def test_bytes_path_and_uri_are_the_same(loops: Path) -> None:
    file = loops / "ambi_choir.flac"
    expected = decode_audio(str(file), RATE)
    with fsspec.open("memory://decode/choir.flac", "wb") as remote:
        remote.write(file.read_bytes())
    np.testing.assert_array_equal(decode_audio(file.read_bytes(), RATE), expected)
    np.testing.assert_array_equal(decode_audio("memory://decode/choir.flac", RATE), expected)
    np.testing.assert_array_equal(decode_audio(f"file://{file}", RATE), expected)


@pytest.mark.parametrize("name", ["tone.m4a", "tone.aac"])
def test_aac_through_ffmpeg(tmp_path: Path, name: str) -> None:
    write_aac(tmp_path / name, tone(441))
    decoded = decode_audio(tmp_path / name, RATE)
    assert abs(len(decoded) - 2 * RATE) < 0.1 * RATE
    assert abs(pitch_hz(decoded) - 441) <= 1
    assert float(np.abs(decoded[RATE // 2 : -RATE // 2]).max()) == pytest.approx(0.4, rel=0.05)
    np.testing.assert_array_equal(decode_audio((tmp_path / name).read_bytes(), RATE), decoded)


@pytest.mark.parametrize("picture", ["", "cover", "libx264"])
def test_the_first_audio_track_is_read_whatever_is_beside_it(tmp_path: Path, picture: str) -> None:
    write_aac(tmp_path / "song.m4a", tone(441), tone(1_000), picture=picture)
    assert abs(pitch_hz(decode_audio(tmp_path / "song.m4a", RATE)) - 441) <= 1


def test_tags_in_another_encoding_do_no_harm(tmp_path: Path) -> None:
    write_aac(tmp_path / "song.m4a", tone(441))
    content = (tmp_path / "song.m4a").read_bytes()
    assert b"Lavf" in content
    np.testing.assert_array_equal(
        decode_audio(content.replace(b"Lavf", b"\xe9t\xe9f"), RATE), decode_audio(content, RATE)
    )


@pytest.mark.parametrize(
    ("riff", "data"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x7FFFF024, 0x7FFFF000),
        (0x80000024, 0x80000000),
        (0xFFFFFFFF, 0),
        (36, 0),
        (8, 0),
        (0, 0),
    ],
    ids=["ffmpeg", "sox", "2-gib", "no-data", "header-alone", "libsndfile", "zeros"],
)
def test_a_wav_written_to_a_pipe_is_read_to_its_end(
    hum: Callable[..., npt.NDArray[np.float32]], riff: int, data: int
) -> None:
    content = encode_audio(hum(20_000), RATE)
    np.testing.assert_array_equal(decode_audio(wav_sizes(content, riff, data), RATE), decode_audio(content, RATE))


def test_an_empty_wav_holds_no_samples_whatever_follows() -> None:
    tags = b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf60.16.100\0"
    content = encode_audio(np.zeros(0, np.float32), RATE) + tags
    with pytest.raises(AudioDecodeError, match="no samples"):
        decode_audio(wav_sizes(content, len(content) - 8, 0), RATE)


def vorbis(samples: npt.NDArray[np.float32]) -> bytes:
    """Encode samples (n, channels) at RATE as an Ogg Vorbis file."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", RATE, samples.shape[1], "VORBIS", format="OGG") as sound:
        for start in range(0, len(samples), 10_000):
            sound.write(samples[start : start + 10_000])
    return buffer.getvalue()


def ogg_pages(content: bytes) -> list[int]:
    return [match.start() for match in re.finditer(b"OggS", content)]


def second_mp3_frame(content: bytes) -> int:
    return content.index(content[:2], 100)


def last_aac_packet(content: bytes) -> int:
    container: Any = av.open(io.BytesIO(content))
    with container:
        return max(int(packet.pos) for packet in container.demux(audio=0) if packet.pos)


@pytest.mark.parametrize(
    ("file_format", "end"),
    [
        ("wav", lambda content: len(content) * 6 // 10),
        ("flac", lambda content: content.rindex(b"\xff\xf8", 0, len(content) * 6 // 10)),
        ("ogg", lambda content: ogg_pages(content)[-1] + 10),
        ("ogg", lambda content: len(content) - 10),
        ("mp3", lambda content: len(content) * 6 // 10),
        ("m4a", last_aac_packet),
        ("m4a", lambda content: len(content) * 6 // 10),
    ],
    ids=["wav", "flac-whole-frames", "ogg-page-header", "ogg-page", "mp3", "m4a-whole-packets", "m4a"],
)
def test_what_states_its_length_and_is_cut_is_truncated(
    tmp_path: Path,
    hum: Callable[..., npt.NDArray[np.float32]],
    file_format: AudioFormat | Literal["m4a"],
    end: Callable[[bytes], int],
) -> None:
    if file_format == "m4a":
        write_aac(tmp_path / "song.m4a", hum(4_000), movflags="faststart")
        content = (tmp_path / "song.m4a").read_bytes()
    else:
        content = encode_audio(hum(4 * RATE), RATE, file_format)
    assert len(decode_audio(content, RATE))
    with pytest.raises(AudioDecodeError, match="truncated"):
        decode_audio(content[: end(content)], RATE)


@pytest.mark.parametrize("file_format", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), bytes(30_000)], ids=["id3v1", "zeros"])
def test_what_follows_the_audio_does_no_harm(
    hum: Callable[..., npt.NDArray[np.float32]], file_format: AudioFormat, tail: bytes
) -> None:
    content = encode_audio(hum(4 * RATE), RATE, file_format)
    np.testing.assert_array_equal(decode_audio(content + tail, RATE), decode_audio(content, RATE))


def test_flac_of_no_stated_length_is_read_to_its_end(loops: Path) -> None:
    content = (loops / "ambi_choir.flac").read_bytes()
    streamed = content[:21] + bytes([content[21] & 0xF0]) + bytes(4) + content[26:]
    assert soundfile.info(io.BytesIO(streamed)).frames == UNKNOWN_FRAMES
    np.testing.assert_array_equal(decode_audio(streamed, RATE), decode_audio(content, RATE))


def test_mp3_of_no_stated_length_gives_what_it_holds(hum: Callable[..., npt.NDArray[np.float32]]) -> None:
    quiet_start = np.concatenate([np.zeros(RATE, np.float32), hum(2 * RATE)])
    tagged = encode_audio(quiet_start, RATE, "mp3")
    content = tagged[second_mp3_frame(tagged) :]
    assert soundfile.info(io.BytesIO(content)).frames > 2 * len(quiet_start), "from the low bit rate of its first frame"
    assert abs(len(decode_audio(content, RATE)) - len(quiet_start)) < 0.1 * RATE
    with_picture = b"ID3\x03\0\0" + bytes([0, 0, 78, 16]) + bytes(10_000) + tagged
    np.testing.assert_array_equal(decode_audio(with_picture, RATE), decode_audio(tagged, RATE))
    with pytest.raises(AudioDecodeError, match="truncated"):
        decode_audio(with_picture[: len(with_picture) - len(tagged) // 2], RATE)


def test_an_ogg_stream_that_misses_a_page_is_corrupt(hum: Callable[..., npt.NDArray[np.float32]]) -> None:
    content = encode_audio(hum(8 * RATE), RATE, "ogg")
    *_, before, missing, after = ogg_pages(content)[:5]
    assert before < missing < after
    with pytest.raises(AudioDecodeError, match="corrupt"):
        decode_audio(content[:missing] + content[after:], RATE)
    with pytest.raises(AudioDecodeError, match="corrupt"):
        decode_audio(content[: missing + 100] + bytes([content[missing + 100] ^ 1]) + content[missing + 101 :], RATE)
    last = ogg_pages(content)[-1]
    with pytest.raises(AudioDecodeError, match="corrupt"):
        decode_audio(content[: last + 100] + b"\0" + content[last + 101 :], RATE)


def test_a_file_that_names_other_files_is_not_audio(
    tmp_path: Path, wav: Callable[..., bytes], hum: Callable[..., npt.NDArray[np.float32]]
) -> None:
    (tmp_path / "song.wav").write_bytes(wav(hum(4_000)))
    for content in (
        f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/song.wav\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile 'song.wav'\n",
    ):
        (tmp_path / "list.mp3").write_text(content)
        with pytest.raises(AudioDecodeError, match="not audio"):
            decode_audio(tmp_path / "list.mp3", RATE)


def _not_finite(wav: Callable[..., bytes], value: float) -> bytes:
    samples = np.zeros(4_000, np.float32)
    samples[2_000] = value
    return wav(samples, RATE)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda _wav, _loops: b"these are words, not samples\n" * 100, "not audio"),
        (lambda _wav, _loops: b"", "not audio"),
        (lambda _wav, loops: (loops / "loop_mika.flac").read_bytes()[:100_000], "corrupt or truncated"),
        (
            lambda _wav, loops: (loops / "loop_mika.flac").read_bytes()[:9_000] + bytes(range(256)) * 400,
            "corrupt or truncated",
        ),
        (lambda wav, _loops: _not_finite(wav, np.nan), "NaN"),
        (lambda wav, _loops: _not_finite(wav, np.inf), "infinite"),
        (lambda wav, _loops: _not_finite(wav, -1e30), "samples of up to 1e+30"),
        (lambda wav, _loops: wav(np.zeros(0, np.float32)), "no samples"),
        (lambda _wav, _loops: wav_header(0), "channels"),
        (lambda _wav, _loops: wav_header(1_025), "channels"),
        (lambda _wav, _loops: wav_header(60_000), "channels"),
        (lambda _wav, _loops: wav_header(1, rate=900), "header states a sample rate of 900 Hz"),
    ],
    ids=[
        "text",
        "empty",
        "truncated-flac",
        "garbage-in-flac",
        "nan",
        "inf",
        "huge",
        "zero-length",
        "0-channels",
        "1025-channels",
        "60000-channels",
        "900-hz",
    ],
)
def test_unusable_audio_is_named(
    tmp_path: Path, loops: Path, wav: Callable[..., bytes], content: Callable[..., bytes], reason: str
) -> None:
    file = tmp_path / "song.wav"
    file.write_bytes(content(wav, loops))
    with pytest.raises(AudioDecodeError) as raised:
        decode_audio(file, RATE)
    assert raised.value.source == str(file)
    assert reason in raised.value.reason
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)
    with pytest.raises(AudioDecodeError) as raised:
        decode_audio(file.read_bytes(), RATE)
    assert raised.value.source == "<bytes>"
    assert " at 0x" not in str(raised.value), "the same bytes have the same reason in every process"


def test_a_headerless_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "samples.raw").write_bytes(bytes(4_000))
    with pytest.raises(AudioDecodeError, match=r"samples\.raw"):
        decode_audio(tmp_path / "samples.raw", RATE)


@pytest.mark.parametrize("name", ["été #1 50%20 [live]?.wav", "Artist::Song.wav", "12:30.wav"])
def test_any_file_name_can_be_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wav: Callable[..., bytes],
    hum: Callable[..., npt.NDArray[np.float32]],
    name: str,
) -> None:
    samples = hum(4_000)
    (tmp_path / name).write_bytes(wav(samples))
    write_aac(tmp_path / "song.m4a", samples)
    (tmp_path / "song.m4a").rename(tmp_path / f"{name}.m4a")
    monkeypatch.chdir(tmp_path)
    for file in (tmp_path / name, str(tmp_path / name), name):
        np.testing.assert_array_equal(decode_audio(file, RATE), samples)
    np.testing.assert_array_equal(decode_audio(f"{name}.m4a", RATE), decode_audio(tmp_path / f"{name}.m4a", RATE))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AudioDecodeError, match=r"absent\.wav: cannot be opened \(No such file or directory\)"):
        decode_audio(tmp_path / "absent.wav", RATE)


def test_a_fault_of_the_machine_is_no_fault_of_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "good.wav", np.full(4_000, 0.1), RATE)
    assert len(decode_audio(tmp_path / "good.wav", RATE)) == 4_000
    next_descriptor = os.dup(0)
    os.close(next_descriptor)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_descriptor, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as raised:
            decode_audio(tmp_path / "good.wav", RATE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not isinstance(raised.value, AudioDecodeError)


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioDecodeError, match=r"pipe\.wav: not a regular file"):
        decode_audio(tmp_path / "pipe.wav", 22_050)


def test_decode_error_survives_pickling() -> None:
    restored = pickle.loads(pickle.dumps(AudioDecodeError("s3://bucket/song.mp3", "no samples")))
    assert isinstance(restored, AudioDecodeError)
    assert (restored.source, restored.reason) == ("s3://bucket/song.mp3", "no samples")
    assert str(restored) == "s3://bucket/song.mp3: no samples"


@pytest.mark.parametrize("file_format", ["wav", "flac"])
def test_encode_is_repeatable_and_exact_to_16_bits(file_format: AudioFormat) -> None:
    samples = np.concatenate([np.linspace(-1, 1, 10_001), np.random.default_rng(0).uniform(-1, 1, 10_000)]).astype(
        np.float32
    )
    content = encode_audio(samples, RATE, file_format)
    assert encode_audio(samples.copy(), RATE, file_format) == content
    info = soundfile.info(io.BytesIO(content))
    assert (info.format, info.subtype, info.samplerate, info.channels) == (file_format.upper(), "PCM_16", RATE, 1)
    decoded = decode_audio(content, RATE)
    assert len(decoded) == len(samples)
    assert np.abs(decoded - samples).max() <= 1 / 32_767


@pytest.mark.soak_short
def test_a_long_ogg_can_be_encoded(hum: Callable[..., npt.NDArray[np.float32]]) -> None:
    samples = np.tile(hum(RATE), 240)
    assert len(decode_audio(encode_audio(samples, RATE, "ogg"), RATE)) == len(samples)


@pytest.mark.parametrize("file_format", ["wav", "flac"])
def test_encode_clips_instead_of_wrapping(file_format: AudioFormat) -> None:
    loud = np.array([1.5, -1.5, 1.0, -1.0, 40.0, -40.0], np.float32).repeat(100)
    decoded = decode_audio(encode_audio(loud, RATE, file_format), RATE)
    np.testing.assert_allclose(decoded, np.sign(loud), atol=1 / 32_767)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("file_format", ["wav", "flac", "ogg", "mp3"])
def test_encode_refuses_what_is_not_finite(file_format: AudioFormat, value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        encode_audio(np.array([0, value, 0], np.float32), RATE, file_format)


@pytest.mark.parametrize(
    ("file_format", "rate"), [("mp3", 96_000), ("mp3", 20_000), ("flac", 700_000), ("ogg", 200_001), ("ogg", 768_000)]
)
def test_a_rate_that_a_format_does_not_know_is_named(file_format: AudioFormat, rate: int) -> None:
    with pytest.raises(ValueError, match=rf"^format {file_format} at {rate} Hz: .+ use wav$") as raised:
        encode_audio(np.zeros(2_000, np.float32), rate, file_format)
    assert "BytesIO" not in str(raised.value)
    assert len(encode_audio(np.zeros(2_000, np.float32), rate)) > 4_000


@pytest.mark.parametrize("file_format", BYTES_PER_SAMPLE)
def test_the_size_of_noise_is_that_of_the_format(file_format: AudioFormat) -> None:
    for rate in (11_025, 22_050, 44_100):
        noise = np.random.default_rng(0).uniform(-1, 1, 3 * rate).astype(np.float32)
        estimate = BYTES_PER_SAMPLE[file_format] * len(noise)
        assert 0.3 * estimate < len(encode_audio(noise, rate, file_format)) < 1.01 * estimate


def test_an_ogg_of_the_highest_rate() -> None:
    assert soundfile.info(io.BytesIO(encode_audio(np.zeros(2_000, np.float32), 200_000, "ogg"))).samplerate == 200_000


@pytest.mark.parametrize("file_format", ["ogg", "mp3"])
def test_lossy_formats_are_decodable(hum: Callable[..., npt.NDArray[np.float32]], file_format: AudioFormat) -> None:
    samples = hum(RATE)
    decoded = decode_audio(encode_audio(samples, RATE, file_format), RATE)
    assert abs(len(decoded) - len(samples)) < 0.1 * RATE
    spectrum = np.abs(np.fft.rfft(decoded[:RATE], RATE))
    assert abs(int(spectrum.argmax()) - 330) <= 1
