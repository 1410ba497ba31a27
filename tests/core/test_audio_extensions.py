"""Decoding of files with each supported extension, to their end."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from audiodiff_core.audio import AUDIO_EXTENSIONS, AudioDecodeError, decode_audio

RATE = 48_000
TIME_S = np.arange(RATE) / RATE
# A sweep, in which delays are visible.
SAMPLES = (0.4 * np.sin(2 * np.pi * (200 * TIME_S + 1_000 * TIME_S**2))).astype(np.float32)

# (format, subtype) of libsndfile, or (container, audio codec, video codec) of FFmpeg
SNDFILE = {
    ".wav": ("WAV", "PCM_16"),
    ".wave": ("WAV", "PCM_24"),
    ".bwf": ("WAVEX", "PCM_16"),
    ".rf64": ("RF64", "PCM_16"),
    ".w64": ("W64", "PCM_16"),
    ".aif": ("AIFF", "PCM_16"),
    ".aiff": ("AIFF", "PCM_24"),
    ".aifc": ("AIFF", "FLOAT"),
    ".caf": ("CAF", "ALAC_16"),
    ".au": ("AU", "PCM_16"),
    ".snd": ("AU", "FLOAT"),
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".mpga": ("MP3", "MPEG_LAYER_III"),
    ".ogg": ("OGG", "VORBIS"),
    ".oga": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
}
FFMPEG = {
    ".mp2": ("mp2", "mp2", None),
    ".aac": ("adts", "aac", None),
    ".adts": ("adts", "aac", None),
    ".ogx": ("ogg", "flac", "libvpx"),
    ".ogv": ("ogv", "libopus", "libvpx"),
    ".m4a": ("ipod", "alac", None),
    ".m4b": ("ipod", "aac", None),
    ".m4r": ("ipod", "aac", None),
    ".mp4": ("mp4", "aac", "libx264"),
    ".m4v": ("mp4", "aac", "mpeg4"),
    ".mov": ("mov", "pcm_s16le", "mpeg4"),
    ".qt": ("mov", "aac", None),
    ".3gp": ("3gp", "aac", "mpeg4"),
    ".3g2": ("3g2", "aac", None),
    ".mka": ("matroska", "flac", None),
    ".mkv": ("matroska", "aac", "libx264"),
    ".weba": ("webm", "libopus", None),
    ".webm": ("webm", "libopus", "libvpx"),
}


def write(file: Path, container: str, codec: str | None, picture: str | None) -> None:
    """Write a file with FFmpeg: SAMPLES as stereo with `codec`, and a video with the codec `picture`.

    None omits the stream.
    """
    output: Any = av.open(str(file), "w", format=container)
    with output:
        video = output.add_stream(picture, rate=10, width=64, height=64, pix_fmt="yuv420p") if picture else None
        sound = output.add_stream(codec, rate=RATE, layout="stereo") if codec else None
        for number in range(10):
            image: Any = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * number, np.uint8), format="rgb24")
            if video is not None:
                output.mux(video.encode(image))
        if video is not None:
            output.mux(video.encode(None))
        if sound:
            frame: Any = av.AudioFrame.from_ndarray(np.stack([SAMPLES, SAMPLES]), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            for part in av.AudioResampler(format=sound.format, layout="stereo", rate=RATE).resample(frame):
                output.mux(sound.encode(part))
            output.mux(sound.encode(None))


def test_all_extensions_are_tried() -> None:
    assert SNDFILE.keys() | FFMPEG.keys() == AUDIO_EXTENSIONS
    assert not SNDFILE.keys() & FFMPEG.keys()


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("extension", sorted(AUDIO_EXTENSIONS))
def test_a_file_of_the_extension_is_decoded(tmp_path: Path, extension: str, upper: bool) -> None:
    file = tmp_path / f"song{extension.upper() if upper else extension}"
    if extension in SNDFILE:
        file_format, subtype = SNDFILE[extension]
        soundfile.write(file, np.stack([SAMPLES, SAMPLES], 1), RATE, format=file_format, subtype=subtype)
    else:
        write(file, *FFMPEG[extension])
    decoded = decode_audio(file, RATE)
    assert len(SAMPLES) <= len(decoded) <= len(SAMPLES) + 4_096  # encoders pad the last packet
    # ADTS and MP2 files do not state the delay of the encoder.
    lag = int(np.correlate(decoded[:8_000], SAMPLES[2_000:5_000], "valid").argmax()) - 2_000
    assert 0 <= lag <= 2_200
    middle = decoded[5_000 + lag : 45_000 + lag]
    np.testing.assert_allclose(middle, SAMPLES[5_000:45_000], rtol=0, atol=0.05)


def test_of_a_video_the_first_of_its_audio_streams_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.mkv"
    output: Any = av.open(str(file), "w", format="matroska")
    with output:
        video = output.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p")
        sounds = [output.add_stream("flac", rate=RATE, layout="mono") for _ in range(2)]
        image: Any = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        output.mux(video.encode(image))
        output.mux(video.encode(None))
        for sound, level in zip(sounds, (1.0, 0.5), strict=True):
            samples = np.round(SAMPLES[np.newaxis] * level * 32_767).astype(np.int16)
            frame: Any = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            output.mux(sound.encode(frame))
            output.mux(sound.encode(None))
    np.testing.assert_allclose(decode_audio(file, RATE), SAMPLES, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.webm"])
def test_a_video_without_audio_says_so(tmp_path: Path, name: str) -> None:
    container = {"a.mkv": "matroska"}.get(name, name.removeprefix("a."))
    write(tmp_path / name, container, None, "libvpx" if name == "a.webm" else "mpeg4")
    with pytest.raises(AudioDecodeError, match="no audio stream"):
        decode_audio(tmp_path / name, RATE)
