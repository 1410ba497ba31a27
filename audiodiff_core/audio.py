"""Audio in and out: any file becomes mono float32 at one rate, as a stream of blocks; samples become a file's bytes.

1. `open_local` makes the source a local file (remote objects are spooled to a temporary file).
2. libsndfile reads it block by block; where it cannot, FFmpeg (PyAV) does.
3. Channels are averaged and soxr (HQ) resamples, both as a stream, so that memory does not grow with the file.
"""

import io
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import fsspec
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

Samples = npt.NDArray[np.float32]
AudioFormat = Literal["wav", "flac", "ogg", "mp3"]

AUDIO_EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff"})
MEDIA_TYPES: dict[AudioFormat, str] = {"wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "mp3": "audio/mpeg"}

MAX_CHANNELS = 64
SAMPLE_RATES_HZ = range(1_000, 768_001)
BLOCK_FRAMES = 65_536


class AudioDecodeError(ValueError):
    """A source that gives no usable audio: `source` names it, `reason` says why in a few words."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


def decode(source: str | Path | bytes, sample_rate: int) -> Samples:
    """All samples of `source`: mono, (n,), nominally in [-1, 1], at `sample_rate` Hz.

    The same numbers as `librosa.load(source, sr=sample_rate, mono=True)` where libsndfile reads the file.
    Raises AudioDecodeError where the source is not audio, is empty, or holds NaN or infinite samples.
    """
    return np.concatenate(list(stream(source, sample_rate)))


def stream(source: str | Path | bytes, sample_rate: int) -> Iterator[Samples]:
    """The samples of `decode`, in blocks of a few seconds. `source`: a path, any fsspec URI, or a file's bytes."""
    name = "<bytes>" if isinstance(source, bytes) else str(source)
    total = 0
    try:
        with open_local(source) as file:
            for block in _resampled(*_mono_blocks(file), sample_rate):
                if not np.isfinite(block).all():
                    raise AudioDecodeError(name, "NaN or infinite samples")
                total += len(block)
                yield block
    except (soundfile.LibsndfileError, av.error.FFmpegError, EOFError, UnicodeError) as error:
        raise AudioDecodeError(name, f"cannot be decoded ({_one_line(error)})") from error
    except _UnusableError as error:
        raise AudioDecodeError(name, str(error)) from error
    if total == 0:
        raise AudioDecodeError(name, "no samples")


@contextmanager
def open_local(source: str | Path | bytes) -> Iterator[str | io.BytesIO]:
    """`source` as something that decoders seek in quickly: a local path, or bytes in memory."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    if "://" not in str(source):  # a local name may hold '::', which fsspec would take for a chain of filesystems
        yield str(Path(source).expanduser())
        return
    filesystem, path = fsspec.url_to_fs(str(source))
    if "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="audiodiff-") as folder:
        local = str(Path(folder) / Path(path).name)
        filesystem.get_file(path, local)
        yield local


def encode(audio: Samples, sample_rate: int, file_format: AudioFormat = "wav") -> bytes:
    """A file's bytes for mono `audio` (n,) in [-1, 1]; wav and flac hold 16-bit PCM. The same samples give the same bytes in wav and flac."""
    if not np.isfinite(audio).all():
        raise ValueError("audio holds NaN or infinite samples: it cannot be written")
    buffer = io.BytesIO()
    subtype = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}[file_format]
    with soundfile.SoundFile(buffer, "w", sample_rate, channels=1, format=file_format.upper(), subtype=subtype) as sound:
        for start in range(0, len(audio), BLOCK_FRAMES):  # libvorbis takes a whole write on its stack
            sound.write(audio[start : start + BLOCK_FRAMES])
    return buffer.getvalue()


class _UnusableError(Exception):
    """Found while decoding; `stream` adds the name of the source."""


def _mono_blocks(file: str | io.BytesIO) -> tuple[int, Iterator[Samples]]:
    """The rate in Hz and the channel mean in blocks, by the first decoder that knows the format."""
    try:
        sound = soundfile.SoundFile(file)
    except (soundfile.LibsndfileError, TypeError) as refusal:  # TypeError: the extension says that there is no header
        if isinstance(file, io.BytesIO):
            file.seek(0)
        try:
            return _ffmpeg_blocks(file)
        except (av.error.FFmpegError, EOFError, UnicodeError) as error:
            raise _UnusableError(f"not audio that can be read ({_one_line(refusal)}; FFmpeg: {_one_line(error)})") from error
    _check_header(sound.channels, sound.samplerate)
    return sound.samplerate, _sndfile_blocks(sound)


def _sndfile_blocks(sound: soundfile.SoundFile) -> Iterator[Samples]:
    with sound:
        while len(block := sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
            yield np.mean(block.T, axis=0, dtype=np.float32)


def _ffmpeg_blocks(file: str | io.BytesIO) -> tuple[int, Iterator[Samples]]:
    container: Any = av.open(file, mode="r")
    if not container.streams.audio:
        container.close()
        raise _UnusableError("holds no audio stream")
    context = container.streams.audio[0].codec_context
    _check_header(context.channels, context.sample_rate)
    return context.sample_rate, _ffmpeg_frames(container, context.sample_rate)


def _ffmpeg_frames(container: Any, rate: int) -> Iterator[Samples]:
    to_float = av.AudioResampler(format="fltp", rate=rate)
    with container:
        for frame in container.decode(audio=0):
            for part in to_float.resample(frame):
                yield np.mean(part.to_ndarray(), axis=0, dtype=np.float32)


def _check_header(channels: int, rate: int) -> None:
    if not 1 <= channels <= MAX_CHANNELS:
        raise _UnusableError(f"claims {channels} channels, 1 to {MAX_CHANNELS} can be read")
    if rate not in SAMPLE_RATES_HZ:
        raise _UnusableError(f"claims a rate of {rate} Hz, {SAMPLE_RATES_HZ[0]} to {SAMPLE_RATES_HZ[-1]} can be read")


def _resampled(rate: int, blocks: Iterator[Samples], target: int) -> Iterator[Samples]:
    """Blocks at `target` Hz, ceil(n * target / rate) samples in all, whatever the block boundaries."""
    if rate == target:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    taken = given = 0
    for block in blocks:
        taken += len(block)
        out = resampler.resample_chunk(block)
        given += len(out)
        if len(out):
            yield out
    tail = resampler.resample_chunk(np.empty(0, np.float32), last=True)
    missing = math.ceil(taken * float(target) / rate) - given
    assert missing >= 0, "the resampler gave samples ahead of its input"
    if missing:
        yield np.pad(tail[:missing], (0, missing - min(missing, len(tail))))


def _one_line(error: BaseException) -> str:
    """The reason alone: the messages of libsndfile and FFmpeg also name the file, for bytes by their address in memory."""
    match error:
        case soundfile.LibsndfileError():
            reason = error.error_string
        case av.error.FFmpegError():
            reason = error.strerror
        case _:
            reason = str(error)
    return " ".join(str(reason).split())
