"""MP3 files of several streams, with wrong header tags or without tags.

The files are decoded to their end and give the samples of libsndfile.
"""

import io
import struct
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from audiodiff_core.audio import AudioDecodeError, decode_audio
from audiodiff_core.audio.mpeg_frames import mpeg_streams
from tests.rare import rare

RATE = 44_100
DECODER_DELAY = 529

Samples = npt.NDArray[np.float32]


def music(seconds: float, rate: int = RATE, channels: int = 1, frequency_hz: float = 440) -> Samples:
    """Return a sine with noise, of shape (n, channels). The last third is silent, so the bit rate varies."""
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(int(frequency_hz)).standard_normal((len(time), channels)) * 0.05
    loud = (time < seconds * 2 / 3)[:, None]
    return ((0.3 * np.sin(2 * np.pi * frequency_hz * time)[:, None] + noise) * loud).astype(np.float32)


def lame(samples: Samples, rate: int = RATE) -> bytes:
    """Encode samples as MP3 with a variable bit rate and a Xing tag."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="MP3")
    return buffer.getvalue()


def lavf(
    samples: Samples, rate: int = RATE, codec: str = "libmp3lame", tagged: bool = True, variable: bool = False
) -> bytes:
    """Encode samples with FFmpeg, with an ID3v2 tag and an Info tag, or without tags if not `tagged`."""
    buffer = io.BytesIO()
    options = {} if tagged or codec != "libmp3lame" else {"write_xing": "0", "id3v2_version": "0"}
    quality = {"global_quality": "472", "flags": "+qscale"} if variable else {"b": "128k"}
    layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    container: Any = av.open(buffer, "w", format="mp2" if codec == "mp2" else "mp3", options=options)
    with container:
        track = container.add_stream(codec, rate=rate, layout=layout, options=quality)
        size = track.codec_context.frame_size or 1_152
        resampler = av.AudioResampler(format=track.codec_context.format, layout=layout, rate=rate, frame_size=size)
        frame: Any = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
        frame.sample_rate = rate
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(track.encode(part))
        container.mux(track.encode(None))
    return buffer.getvalue()


def alone(content: bytes) -> Samples:
    """Return the channel mean of libsndfile's samples of a file with one stream."""
    samples, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    mean: Samples = samples[:, 0] if samples.shape[1] == 1 else (samples[:, 0] + samples[:, 1]) * np.float32(0.5)
    return mean


def id3v2(size: int) -> bytes:
    places = bytes(size >> 7 * place & 0x7F for place in (3, 2, 1, 0))
    return b"ID3\x03\0\0" + places + np.random.default_rng(size).bytes(size)


def ape(size: int) -> bytes:
    return b"APETAGEX" + struct.pack("<4I8x", 2_000, size, 1, 0xA0000000) + np.random.default_rng(size).bytes(size)


ID3V1 = b"TAG" + b"title".ljust(125)
BETWEEN = {
    "nothing": b"",
    "id3v1": ID3V1,
    "id3v2": id3v2(200),
    "id3v2-picture": id3v2(150_000),
    "ape": ape(5_000),
    "ape-id3v1-id3v2": ape(300) + ID3V1 + id3v2(4_000),
    "zeros": bytes(5_000),
    "text": b"text " * 1_000,
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_tagged_streams_are_each_as_alone(between: bytes) -> None:
    parts = [
        lame(music(2)),
        lavf(music(1, channels=2, frequency_hz=600)),
        lame(music(0.1, frequency_hz=500)),
        lame(music(1)),
    ]
    np.testing.assert_array_equal(
        decode_audio(between.join(parts), RATE), np.concatenate([alone(part) for part in parts])
    )


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
@pytest.mark.parametrize("first", [rare("tagged"), "untagged"])
def test_streams_without_a_tag_are_read_to_their_end(first: str, between: bytes) -> None:
    parts = [lavf(music(2), tagged=first == "tagged"), lavf(music(1), tagged=False), lavf(music(1), tagged=False)]
    whole = decode_audio(between.join(parts), RATE)
    expected = sum(len(alone(part)) for part in parts)
    assert abs(len(whole) - expected) <= 1_105, "the delay or the padding of one stream"
    end = alone(parts[-1])[-RATE // 2 :]
    assert np.abs(end).max() > 0.1
    np.testing.assert_allclose(whole[-len(end) :], end, rtol=0, atol=1e-5)


def test_a_stream_of_varying_bit_rate_without_a_tag_is_read_to_its_end() -> None:
    samples = music(3)
    content = lavf(samples, tagged=False, variable=True)
    content = lavf(music(3)[::-1], tagged=False, variable=True) if len(alone(content)) > len(samples) else content
    assert len(alone(content)) < len(samples) - RATE, "the estimate of libsndfile, from the first frame"
    (stream,) = mpeg_streams(io.BytesIO(content))
    assert len(decode_audio(content, RATE)) == stream.samples - DECODER_DELAY > len(samples)


def test_a_tag_that_counts_too_few_frames_does_not_end_the_stream() -> None:
    content = lame(music(3))
    count = content.index(b"Xing") + 8
    wrong = content[:count] + struct.pack(">I", 40) + content[count + 4 :]
    assert len(alone(wrong)) < RATE + 2_000
    decoded = decode_audio(wrong, RATE)
    expected = alone(content)
    assert len(decoded) >= len(expected)
    np.testing.assert_array_equal(decoded[: len(expected)], expected)


@pytest.mark.parametrize("leading", [b"", bytes(1_000)], ids=["libsndfile", "ffmpeg"])
def test_streams_of_other_rates_are_named(leading: bytes) -> None:
    with pytest.raises(
        AudioDecodeError, match=r"streams of 44100 and 48000 Hz|changes its channels or its rate midway"
    ):
        decode_audio(leading + lame(music(1)) + lame(music(1, 48_000), 48_000), RATE)


def test_a_stream_of_another_layer_is_named() -> None:
    layer_2 = lavf(music(1), codec="mp2")
    assert len(decode_audio(layer_2, RATE)) == len(alone(layer_2))
    with pytest.raises(AudioDecodeError, match="layer 2"):
        decode_audio(lame(music(1)) + layer_2, RATE)


@pytest.mark.parametrize("cut", [0.3, 0.5, 0.9])
def test_a_cut_stream_is_truncated_wherever_it_stands(cut: float) -> None:
    first, second = lame(music(4)), lame(music(3))
    for content in (
        first[: int(len(first) * 0.6 * cut)],
        first[: int(len(first) * 0.6 * cut)] + second,
        first + second[: int(len(second) * 0.6 * cut)],
        first + second[: int(len(second) * 0.6 * cut)] + first,
    ):
        with pytest.raises(AudioDecodeError, match="truncated"):
            decode_audio(content, RATE)


@pytest.mark.parametrize(
    "tail", [*BETWEEN.values(), np.random.default_rng(0).bytes(3_000_000)], ids=[*BETWEEN, "noise"]
)
@pytest.mark.parametrize("kind", ["lame", rare("lavf"), "untagged"])
def test_what_follows_the_frames_is_no_stream(kind: str, tail: bytes) -> None:
    content = {"lame": lame, "lavf": lavf, "untagged": lambda samples: lavf(samples, tagged=False)}[kind](music(2))
    np.testing.assert_array_equal(decode_audio(content + tail, RATE), alone(content))


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_sample_rate_is_known(rate: int, channels: int) -> None:
    content = lame(music(0.5, rate, channels), rate)
    np.testing.assert_allclose(decode_audio(content, rate), alone(content), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(decode_audio(content * 2, rate), np.tile(decode_audio(content, rate), 2))


def test_frames_alone_are_read_as_by_libsndfile_wherever_they_are_cut() -> None:
    content = lavf(music(1), tagged=False)
    for end in [*range(len(content) // 2, len(content) // 2 + 500, 50), len(content) - 1]:
        np.testing.assert_array_equal(decode_audio(content[:end], RATE), alone(content[:end]))


def test_a_fraunhofer_tag_is_no_end() -> None:
    """Check that decoding continues after a Fraunhofer tag.

    libsndfile does not know the tag and decodes its frame as silence.
    """
    frames = lavf(music(2), tagged=False)
    header = frames[:2] + bytes([0x90]) + frames[3:4]
    for count in (10, 78):
        tag = (header.ljust(36, b"\0") + b"VBRI" + struct.pack(">3H2I", 1, 0, 0, len(frames), count)).ljust(417, b"\0")
        assert len(decode_audio(tag + frames, RATE)) == len(alone(frames)) + 1_152
        assert len(decode_audio((tag + frames) * 2, RATE)) == 2 * (len(alone(frames)) - DECODER_DELAY)


def test_bytes_that_look_like_headers_end_the_search() -> None:
    content = lame(music(1)) + b"\xff\xfb\x90\xc4" * 110_000
    with pytest.raises(AudioDecodeError, match="broken in more than 100000 places"):
        decode_audio(content, RATE)
