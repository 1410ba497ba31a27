"""Files with more samples than their header states are refused with both lengths.

Appended data other than samples is ignored.
"""

import io
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from audiodiff_core.audio import AudioDecodeError, decode_audio

RATE = 44_100
SECONDS = 4

Samples = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def music() -> Samples:
    random = np.random.default_rng(0)
    return (0.4 * np.sin(np.arange(SECONDS * RATE) / 20) + random.uniform(-0.1, 0.1, SECONDS * RATE)).astype(np.float32)


def written(samples: Samples, file_format: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=file_format, subtype=subtype)
    return buffer.getvalue()


def field(content: bytes, marker: bytes, offset: int, layout: str, value: float) -> bytes:
    """Return `content` with another number, `offset` bytes after the start of the first `marker`."""
    changed = bytearray(content)
    struct.pack_into(layout, changed, content.index(marker) + offset, value)
    return bytes(changed)


def stated(content: bytes, file_format: str, size: int) -> bytes:
    """Return `content` with a header that states `size` bytes of data."""
    match file_format:
        case "WAV" | "WAVEX":
            return field(content, b"data", 4, "<I", size)
        case "RF64":
            return field(field(content, b"ds64", 16, "<Q", size), b"ds64", 8, "<Q", size + 96)
        case "AIFF":
            return field(content, b"SSND", 4, ">I", size + 8)
        case "CAF":
            return field(content, b"data", 4, ">q", size + 4)
        case _:
            return field(content, b".snd", 8, ">I", size)


def data_bytes(content: bytes, file_format: str) -> int:
    layout, marker, offset, extra = {
        "WAV": ("<I", b"data", 4, 0),
        "WAVEX": ("<I", b"data", 4, 0),
        "RF64": ("<Q", b"ds64", 16, 0),
        "AIFF": (">I", b"SSND", 4, 8),
        "CAF": (">q", b"data", 4, 4),
        "AU": (">I", b".snd", 8, 0),
    }[file_format]
    size: int = struct.unpack_from(layout, content, content.index(marker) + offset)[0]
    return size - extra


CONTAINERS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ULAW"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "MS_ADPCM"),
    ("WAV", "GSM610"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("RF64", "FLOAT"),
    ("AIFF", "PCM_16"),
    ("AIFF", "PCM_24"),
    ("CAF", "PCM_16"),
    ("CAF", "FLOAT"),
    ("AU", "PCM_16"),
    ("AU", "ULAW"),
]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize(("file_format", "subtype"), CONTAINERS)
def test_samples_after_the_stated_data_are_noticed(
    music: Samples, file_format: str, subtype: str, share: float
) -> None:
    content = written(music, file_format, subtype)
    assert len(decode_audio(content, RATE)) >= len(music)
    short = stated(content, file_format, int(data_bytes(content, file_format) * share) // 256 * 256)
    with pytest.raises(AudioDecodeError, match=r"holds \d\.\d\d seconds, but its header states \d\.\d\d") as raised:
        decode_audio(short, RATE)
    words = raised.value.reason.replace(",", "").split()
    held, states = float(words[1]), float(words[-1])
    assert held == pytest.approx(SECONDS, rel=0.05)
    assert states == pytest.approx(SECONDS * share, rel=0.1)


@pytest.mark.parametrize("file_format", ["WAV", "AIFF", "CAF", "AU"])
def test_a_header_that_states_no_samples_names_what_follows(music: Samples, file_format: str) -> None:
    with pytest.raises(AudioDecodeError, match=r"holds 4\.00 seconds, but its header states 0\.00"):
        decode_audio(stated(written(music, file_format, "PCM_16"), file_format, 0), RATE)


@pytest.mark.parametrize("file_format", ["WAV", "RF64", "W64", "AIFF", "CAF", "AU", "FLAC"])
def test_a_second_file_is_noticed(music: Samples, file_format: str) -> None:
    content = written(music, file_format)
    for other in (content, written(music[:10_000], file_format), written(music[: len(music) // 2], file_format)):
        with pytest.raises(AudioDecodeError, match="holds"):
            decode_audio(content + other, RATE)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content


LIST = b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf60.16.100\0"
ID3 = b"ID3\x03\0\0\0\0\x0f\x50" + np.random.default_rng(1).bytes((15 << 7) + 80)
TRAILERS = {
    "list": LIST,
    "list-twice": LIST * 2,
    "id3-chunk": chunk(b"id3 ", np.random.default_rng(2).bytes(20_001)),
    "id3-chunk-padded": chunk(b"id3 ", np.random.default_rng(2).bytes(20_001)) + b"\0" + LIST,
    "odd-pad-of-any-value": chunk(b"smpl", b"abc") + b"\xff" + LIST,
    "bext": chunk(b"bext", b"text" + bytes(598)),
    "smpl-cue-pad": chunk(b"smpl", bytes(36)) + chunk(b"cue ", bytes(4)) + chunk(b"PAD ", bytes(40_000)),
    "vendor": chunk(b"DGDA", np.random.default_rng(3).bytes(60_000)) + chunk(b"minf", bytes(range(16))),
    "cut-list": LIST[:20],
    "zeros": bytes(100_000),
    "zeros-list": bytes(511) + LIST,
    "id3v1": b"TAG" + b"title".ljust(125),
    "id3v2": ID3,
    "id3v2-id3v1": ID3 + b"TAG" + b"title".ljust(125),
    "few-bytes": b"\x01\x02\x03",
}


@pytest.mark.parametrize("tail", TRAILERS.values(), ids=TRAILERS)
@pytest.mark.parametrize(("subtype", "count"), [("PCM_16", 50_000), ("PCM_24", 50_001), ("PCM_U8", 50_001)])
def test_what_follows_the_data_is_no_sample(music: Samples, subtype: str, count: int, tail: bytes) -> None:
    content = written(music[:count], "WAV", subtype)
    np.testing.assert_array_equal(decode_audio(content + tail, RATE), decode_audio(content, RATE))
    unpadded = content[: 44 + data_bytes(content, "WAV")]
    np.testing.assert_array_equal(decode_audio(unpadded + tail, RATE), decode_audio(content, RATE))


@pytest.mark.parametrize("file_format", ["AIFF", "CAF", "AU", "RF64", "W64", "FLAC"])
@pytest.mark.parametrize("tail", ["zeros", "id3v1", "id3v2"])
def test_tags_after_other_formats_are_no_samples(music: Samples, file_format: str, tail: str) -> None:
    content = written(music[:50_000], file_format)
    assert abs(len(decode_audio(content + TRAILERS[tail], RATE)) - 50_000) <= (0 if file_format != "W64" else 50_000)


def flac_states(content: bytes, samples: int) -> bytes:
    return (
        content[:21]
        + bytes([content[21] & 0xF0 | samples >> 32])
        + struct.pack(">I", samples & 0xFFFFFFFF)
        + content[26:]
    )


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("missing", [1, 4_096, 2 * RATE])
def test_a_flac_stream_that_is_longer_than_its_header_states(music: Samples, channels: int, missing: int) -> None:
    content = written(np.stack([music] * channels, axis=1), "FLAC")
    with pytest.raises(AudioDecodeError, match=r"holds 4\.00 seconds, but its header states \d\.\d\d"):
        decode_audio(flac_states(content, len(music) - missing), RATE)


def test_a_flac_stream_of_one_frame_that_is_longer_than_its_header_states(music: Samples) -> None:
    content = written(music[:3_000], "FLAC")
    assert len(decode_audio(content, RATE)) == 3_000
    with pytest.raises(AudioDecodeError, match=r"holds 0\.07 seconds, but its header states 0\.02"):
        decode_audio(flac_states(content, 1_000), RATE)


def test_flac_files_are_whole(loop_files: list[Path]) -> None:
    for file in loop_files:
        content = file.read_bytes()
        assert len(decode_audio(content, RATE)) == pytest.approx(soundfile.info(file).duration * RATE, abs=1)
        with pytest.raises(AudioDecodeError, match="holds"):
            decode_audio(flac_states(content, soundfile.info(file).frames - 1), RATE)


def m4a(file: Path, samples: Samples, **options: str) -> bytes:
    container: Any = av.open(str(file), "w", options=options)
    with container:
        track = container.add_stream("aac", rate=RATE, layout="mono")
        for start in range(0, len(samples), 1_024):
            frame: Any = av.AudioFrame.from_ndarray(samples[None, start : start + 1_024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return file.read_bytes()


LAYOUTS = {
    "plain": {},
    "faststart": {"movflags": "faststart"},
    "fragments": {"movflags": "frag_keyframe+empty_moov+default_base_moof"},
}


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_a_second_mp4_file_is_noticed(tmp_path: Path, music: Samples, options: dict[str, str]) -> None:
    content = m4a(tmp_path / "song.m4a", music, **options)
    assert len(decode_audio(content, RATE)) == pytest.approx(len(music), abs=2_048)
    with pytest.raises(AudioDecodeError, match="holds 2 MP4 files"):
        decode_audio(content * 2, RATE)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("options", [LAYOUTS["plain"], LAYOUTS["faststart"]], ids=["plain", "faststart"])
def test_packets_that_no_sample_table_names_are_noticed(
    tmp_path: Path, music: Samples, options: dict[str, str], share: float
) -> None:
    content = m4a(tmp_path / "song.m4a", music, **options)
    packets = struct.unpack_from(">I", content, content.index(b"stsz") + 12)[0]
    kept = int(packets * share)
    short = field(field(content, b"stsz", 12, ">I", kept), b"stts", 12, ">I", kept - 1)
    with pytest.raises(AudioDecodeError, match=r"holds about \d\.\d\d seconds, but its sample tables state \d\.\d\d"):
        decode_audio(short, RATE)


def test_streams_without_a_stated_length_are_read_to_their_end(tmp_path: Path, music: Samples) -> None:
    content = m4a(tmp_path / "song.aac", music)
    assert len(decode_audio(content * 2, RATE)) == pytest.approx(2 * len(decode_audio(content, RATE)), abs=2_048)


def test_a_size_that_wrapped_is_noticed(tmp_path: Path, music: Samples) -> None:
    wrapped = 2 * RATE * SECONDS
    content = written(music, "WAV", "PCM_16")
    assert data_bytes(content, "WAV") == wrapped
    with (tmp_path / "long.wav").open("wb") as file:
        file.write(content + content[44:])
        file.truncate(44 + (1 << 32) + wrapped)  # sparse: the zeros take no disk space
    with pytest.raises(AudioDecodeError, match=r"holds 48699\.\d\d seconds, but its header states 4\.00"):
        decode_audio(tmp_path / "long.wav", RATE)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_f32le"])
def test_a_size_of_one_for_pcm_samples_in_quicktime_files_is_ignored(
    tmp_path: Path, music: Samples, codec: str
) -> None:
    content = muxed(tmp_path / "song.mov", music, codec)
    changed = field(content, b"stsz", 8, ">I", 1)
    np.testing.assert_array_equal(decode_audio(changed, RATE), decode_audio(content, RATE))


def leading_id3(size: int) -> bytes:
    return b"ID3\3\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(size)


TAGS = {
    "id3": leading_id3(1_000),
    "odd": leading_id3(1_001),
    "large": leading_id3(100_000),
    "two": leading_id3(30) + leading_id3(2_000),
    "ape": b"APETAGEX" + struct.pack("<IIII8x", 2_000, 64, 1, 1 << 29) + bytes(64),
}


@pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("file_format", ["WAV", "RF64", "W64", "AIFF", "CAF", "AU", "FLAC", "OGG"])
def test_a_tag_before_the_file_changes_nothing(tmp_path: Path, music: Samples, file_format: str, tag: bytes) -> None:
    content = written(music, file_format)
    (tmp_path / "song.bin").write_bytes(tag + content)
    for source in (tag + content, tmp_path / "song.bin"):
        np.testing.assert_array_equal(decode_audio(source, RATE), decode_audio(content, RATE))


@pytest.mark.parametrize("file_format", ["WAV", "RF64", "W64", "AIFF", "CAF", "AU", "FLAC"])
def test_a_tag_before_the_file_hides_nothing(music: Samples, file_format: str) -> None:
    content = written(music, file_format)
    with pytest.raises(AudioDecodeError, match="holds"):
        decode_audio(TAGS["id3"] + content * 2, RATE)
    with pytest.raises(AudioDecodeError, match="truncated"):
        decode_audio(TAGS["large"] + content[: len(content) // 2], RATE)


def test_a_tag_before_an_mp4_file_hides_nothing(tmp_path: Path, music: Samples) -> None:
    content = m4a(tmp_path / "song.m4a", music)
    np.testing.assert_array_equal(decode_audio(TAGS["id3"] + content, RATE), decode_audio(content, RATE))
    with pytest.raises(AudioDecodeError, match="holds 2 MP4 files"):
        decode_audio(TAGS["id3"] + content * 2, RATE)


def muxed(
    file: Path, samples: Samples, codec: str, start: int = 0, options: dict[str, str] | None = None, video: bool = False
) -> bytes:
    container: Any = av.open(str(file), "w", options=options or {})
    rate = 48_000 if codec == "libopus" else RATE
    with container:
        track = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(format=track.codec_context.format, layout="mono", rate=rate, frame_size=960)
        pictures: Any = container.add_stream("mpeg4", rate=1, width=16, height=16, pix_fmt="yuv420p") if video else None
        for number in range(10 if video else 0):
            picture = av.VideoFrame(16, 16, "yuv420p")
            picture.pts = number
            container.mux(pictures.encode(picture))
        frame: Any = av.AudioFrame.from_ndarray((samples[None] * 32_767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, start
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(track.encode(part))
        container.mux(track.encode(None))
        if video:
            container.mux(pictures.encode(None))
    return file.read_bytes()


CODECS_IN_MATROSKA = [("song.mka", "pcm_s16le"), ("song.mka", "flac"), ("song.mka", "aac"), ("song.webm", "libopus")]


@pytest.mark.parametrize(("name", "codec"), CODECS_IN_MATROSKA)
@pytest.mark.parametrize("tag", [b"", TAGS["id3"]], ids=["plain", "tag"])
def test_matroska_that_is_cut_or_followed_by_another_file_is_noticed(
    tmp_path: Path, music: Samples, name: str, codec: str, tag: bytes
) -> None:
    content = muxed(tmp_path / name, music, codec)
    assert len(decode_audio(tag + content, RATE)) == pytest.approx(len(music), abs=2_048)
    for share in (0.3, 0.5, 0.8):
        with pytest.raises(AudioDecodeError, match=r"truncated: holds \d\.\d\d of the 4\.\d\d seconds"):
            decode_audio(tag + content[: int(len(content) * share)], RATE)
    with pytest.raises(AudioDecodeError, match="holds several Matroska or WebM files; split the file"):
        decode_audio(tag + content * 2, RATE)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mka", "libmp3lame"), ("a.mka", "aac"), ("a.webm", "libopus")], ids=lambda value: value
)
@pytest.mark.parametrize("duration_s", [0.03, 0.1, 0.4])
def test_short_matroska_is_complete_without_the_delay_of_its_codec(
    tmp_path: Path, music: Samples, name: str, codec: str, duration_s: float
) -> None:
    samples = music[: int(duration_s * RATE)]
    assert len(decode_audio(muxed(tmp_path / name, samples, codec), RATE)) == pytest.approx(len(samples), abs=1_024)


@pytest.mark.parametrize(("name", "codec"), CODECS_IN_MATROSKA)
def test_live_recordings_in_matroska_state_no_length(tmp_path: Path, music: Samples, name: str, codec: str) -> None:
    content = muxed(tmp_path / name, music, codec, options={"live": "1"})
    assert content.count(b"\x44\x89\x88") == 0, "a live recording states a duration"
    assert len(decode_audio(content, RATE)) == pytest.approx(len(music), abs=2_048)
    half = decode_audio(content[: len(content) // 2], RATE)
    assert len(half) == pytest.approx(len(music) / 2, rel=0.2)
    with pytest.raises(AudioDecodeError, match="holds several Matroska or WebM files"):
        decode_audio(content * 2, RATE)


@pytest.mark.parametrize("files", [1, 2])
def test_clusters_of_matroska_may_be_of_unknown_size(tmp_path: Path, music: Samples, files: int) -> None:
    content = muxed(tmp_path / "song.mka", music, "pcm_s16le", options={"live": "1"})
    pieces = content.split(b"\x1f\x43\xb6\x75")
    assert len(pieces) > 1
    heads = [8 - piece[0].bit_length() for piece in pieces[1:]]
    unsized = [
        bytes([(1 << 8 - more) - 1]) + b"\xff" * more + piece[1 + more :]
        for more, piece in zip(heads, pieces[1:], strict=True)
    ]
    content = b"\x1f\x43\xb6\x75".join([pieces[0], *unsized])
    if files == 1:
        np.testing.assert_allclose(decode_audio(content, RATE), music, rtol=0, atol=1e-4)
        return
    with pytest.raises(AudioDecodeError, match="holds several Matroska or WebM files"):
        decode_audio(content * 2, RATE)


@pytest.mark.parametrize("options", [{"start": 2 * RATE}, {"video": True}], ids=["late", "video"])
def test_the_duration_of_matroska_is_not_that_of_the_audio_alone(
    tmp_path: Path, music: Samples, options: dict[str, Any]
) -> None:
    content = muxed(tmp_path / "song.mkv", music, "pcm_s16le", **options)
    assert len(decode_audio(content, RATE)) == pytest.approx(len(music), abs=2_048)


@pytest.mark.parametrize("duration", [float("nan"), float("inf"), -1.0, 0.0, 1e300])
def test_a_duration_of_matroska_that_is_no_number_is_ignored(tmp_path: Path, music: Samples, duration: float) -> None:
    content = field(muxed(tmp_path / "song.mka", music, "pcm_s16le"), b"\x44\x89\x88", 3, ">d", duration)
    assert len(decode_audio(content, RATE)) == len(music)
