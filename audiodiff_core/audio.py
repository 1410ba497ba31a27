"""Audio in and out: any file becomes mono float32 at one rate, as a stream of blocks; samples become a file's bytes.

1. `open_local` makes the source a local file (remote objects are spooled to a temporary file).
2. libsndfile reads it block by block; where it cannot, FFmpeg (PyAV) does. Of sound Ogg Vorbis, libsndfile reads the header alone: FFmpeg decodes it in
   three quarters of the time, to the same samples but for rounding (4e-7).
3. Channels are averaged and soxr (HQ) resamples, both as a stream, so that memory does not grow with the file.
4. A file that holds less than it states (see `containers`), or samples that are no numbers, is an error, raised where it shows.
"""

import io
import math
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

import av
import av.error
import fsspec
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from audiodiff_core.containers import UnusableError, check_length, check_sample_tables, check_whole, is_unbroken_ogg, is_unfinished
from audiodiff_core.wav import LoopInfo, with_loop

Samples = npt.NDArray[np.float32]
AudioFormat = Literal["wav", "flac", "ogg", "mp3"]

AUDIO_EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff"})
MEDIA_TYPES: dict[AudioFormat, str] = {"wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "mp3": "audio/mpeg"}

MAX_CHANNELS = 1_024  # as in libsndfile
MAX_LEVEL = 1e10  # above 32-bit whole numbers stored as floats; from 1e16 on, a mel spectrogram overflows
SAMPLE_RATES_HZ = range(1_000, 768_001)
BLOCK_FRAMES = 65_536  # of one or two channels; of more channels, a block holds as many samples in fewer frames
VORBIS_RATE_AT_MOST = 200_000  # in Hz; above, libsndfile's encoder ends the process
VORBIS_BLOCK_FRAMES = 8_192  # at most
SNDFILE_MALFORMED = 3  # libsndfile knows the format, but the file is damaged: FFmpeg would give what is left
FFMPEG_FORMATS = "mov,aac,mp3,ogg,wav,flac,aiff,matroska,caf"  # none that opens other files or addresses, as playlists do


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

    The same numbers as `librosa.load(source, sr=sample_rate, mono=True)` where libsndfile decodes the file, and within 1e-6 where FFmpeg decodes Vorbis.
    Raises AudioDecodeError where the source is not audio, is empty, is corrupt or truncated as far as its format tells, or holds samples that are no numbers.
    """
    return np.concatenate(list(stream(source, sample_rate)))


def stream(source: str | Path | bytes, sample_rate: int) -> Iterator[Samples]:
    """The samples of `decode`, in blocks of a few seconds. `source`: a path, any fsspec URI, or a file's bytes."""
    name = "<bytes>" if isinstance(source, bytes) else str(source)
    total = 0
    try:
        with open_local(source) as file:
            for block in _resampled(*_mono_blocks(file), sample_rate):
                _check_level(block)
                total += len(block)
                yield block
    except (soundfile.LibsndfileError, av.error.FFmpegError) as error:
        raise AudioDecodeError(name, f"corrupt or truncated ({_one_line(error)})") from error
    except UnusableError as error:
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


def encode(audio: Samples, sample_rate: int, file_format: AudioFormat = "wav", loop: LoopInfo | None = None) -> bytes:
    """A file's bytes for mono `audio` (n,) in [-1, 1]; wav and flac hold 16-bit PCM. The same samples give the same bytes in wav and flac.

    Of audio that is a loop as a whole, `loop` tells a wav file's readers the loop points and the tempo; the other formats cannot hold them.
    Raises ValueError for such a one, for samples that are not finite, and for a rate that the format does not know (mp3: nine, up to 48 kHz).
    """
    if loop is not None and file_format != "wav":
        raise ValueError(f"format {file_format} with loop points: only wav holds them")
    if not np.isfinite(audio).all():
        raise ValueError("audio holds NaN or infinite samples: it cannot be written")
    buffer = io.BytesIO()
    subtype = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}[file_format]
    if file_format == "ogg" and sample_rate > VORBIS_RATE_AT_MOST:
        raise ValueError(f"format ogg at {sample_rate} Hz: it knows rates up to {VORBIS_RATE_AT_MOST}, use wav")
    try:
        sound = soundfile.SoundFile(buffer, "w", sample_rate, channels=1, format=file_format.upper(), subtype=subtype)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"format {file_format} at {sample_rate} Hz: {_one_line(error)}: use wav") from error
    with sound:
        for start in range(0, len(audio), BLOCK_FRAMES):  # libvorbis takes a whole write on its stack
            sound.write(audio[start : start + BLOCK_FRAMES])
    content = buffer.getvalue()
    return content if loop is None else with_loop(content, len(audio), sample_rate, loop)


def _mono_blocks(file: str | io.BytesIO) -> tuple[int, Iterator[Samples]]:
    """The rate in Hz and the channel mean in blocks, by the first decoder that knows the format."""
    try:
        sound = _ForwardSoundFile(file)
        if sound.frames or not is_unfinished(sound.extra_info):
            _check_header(sound.channels, sound.samplerate)
            return sound.samplerate, _vorbis_blocks(sound, file) if _is_plain_vorbis(sound, file) else _sndfile_blocks(sound, file)
        refusal = "a header that was never finished"
    except soundfile.LibsndfileError as error:
        refusal = _one_line(error)
        if error.code == SNDFILE_MALFORMED:
            raise UnusableError(f"corrupt or truncated ({refusal})") from error
    except TypeError:  # the extension says that there is no header
        refusal = "no header"
    try:
        with _content(file) as content:
            check_sample_tables(content)
            content.seek(0)
    except OSError as error:
        raise UnusableError(f"cannot be opened ({error.strerror})") from error
    try:
        return _ffmpeg_blocks(file)
    except (UnusableError, av.error.FFmpegError) as error:
        raise UnusableError(f"not audio that can be read (libsndfile: {refusal}; FFmpeg: {_one_line(error)})") from error


class _ForwardSoundFile(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """Read from start to end: where it can seek, soundfile does so after each block, which takes time and changes the samples of an MP3."""

    def seekable(self) -> bool:
        return False


def _sndfile_blocks(sound: soundfile.SoundFile, file: str | io.BytesIO, given: int = 0) -> Iterator[Samples]:
    """What follows the first `given` samples."""
    frames = _block_frames(sound.channels)
    read = 0
    with sound:
        while read < sound.frames and len(block := sound.read(min(sound.frames - read, frames), dtype="float32", always_2d=True)):
            fresh = block[max(0, given - read) :]
            read += len(block)
            if len(fresh):
                yield _mono(fresh.T)
        with _content(file) as content:
            check_whole(sound, read, content)


def _is_plain_vorbis(sound: soundfile.SoundFile, file: str | io.BytesIO) -> bool:
    """Whether FFmpeg gives libsndfile's samples: with more channels, their order differs; chained and damaged streams are libsndfile's."""
    if (sound.format, sound.subtype) != ("OGG", "VORBIS") or sound.channels > 2:
        return False
    with _content(_apart(file)) as content:
        return is_unbroken_ogg(content)


def _vorbis_blocks(sound: soundfile.SoundFile, file: str | io.BytesIO) -> Iterator[Samples]:
    """As `_sndfile_blocks`, by FFmpeg as far as all samples are in their place; if that is not to the end, libsndfile goes on from there, and judges."""
    given = 0
    with suppress(av.error.FFmpegError):
        for block in _vorbis_frames(_ffmpeg_container(_apart(file))):
            fresh = block[: sound.frames - given]  # a stream of one page ends with some samples too many
            given += len(fresh)
            if len(fresh):
                yield fresh
    if given < sound.frames:
        yield from _sndfile_blocks(sound, file, given)
        return
    with sound, _content(file) as content:
        check_whole(sound, given, content)


def _vorbis_frames(container: Any) -> Iterator[Samples]:
    """The channel mean in blocks, until something is missing."""
    gathered: Any = av.AudioFifo()
    read = 0
    with container:
        for frame in container.decode(container.streams.audio[0]):
            if frame.pts is None or abs(frame.pts - read) > VORBIS_BLOCK_FRAMES:  # inside a page, FFmpeg estimates where its packets are
                break
            read += frame.samples
            frame.pts = None
            gathered.write(frame)
            if gathered.samples >= BLOCK_FRAMES:
                yield _mono(gathered.read().to_ndarray())
    if gathered.samples:
        yield _mono(gathered.read().to_ndarray())


def _ffmpeg_container(file: str | io.BytesIO) -> Any:
    source = f"file:{file}" if isinstance(file, str) else file  # a name may hold ':', which FFmpeg would take for the end of a protocol
    return av.open(source, options={"format_whitelist": FFMPEG_FORMATS}, metadata_errors="replace")


def _ffmpeg_blocks(file: str | io.BytesIO) -> tuple[int, Iterator[Samples]]:
    """As `_mono_blocks`. FFmpeg keeps the whole sample table of an MP4 file: about 11 MB for an hour."""
    container = _ffmpeg_container(file)
    if not container.streams.audio:
        raise UnusableError("no audio stream")
    context = container.streams.audio[0].codec_context
    if context is None or not context.channels:
        raise UnusableError("an audio stream of no known codec or no channels")
    _check_header(context.channels, context.sample_rate)
    return context.sample_rate, _ffmpeg_frames(container, context.sample_rate)


def _ffmpeg_frames(container: Any, rate: int) -> Iterator[Samples]:
    """The channel mean of the first audio stream, FFmpeg's frames (about 1024 samples each) gathered into blocks."""
    track = container.streams.audio[0]
    to_float = av.AudioResampler(format="fltp", rate=rate)
    gathered: Any = av.AudioFifo()
    kind = None
    read = 0
    with container:
        for frame in container.decode(track):
            kind = kind or (frame.format.name, frame.layout.name, rate)
            if kind != (frame.format.name, frame.layout.name, frame.sample_rate):
                raise UnusableError("changes its channels or its rate midway")
            read += frame.samples
            for part in to_float.resample(frame):
                part.pts = None  # the queue would refuse a gap
                gathered.write(part)
            if gathered.samples >= _block_frames(track.channels):
                yield _mono(gathered.read().to_ndarray())
        if gathered.samples:
            yield _mono(gathered.read().to_ndarray())
        if track.frames and track.duration:  # as the sample table has them
            check_length(read, int(track.duration * track.time_base * rate), rate)


def _content(file: str | io.BytesIO) -> AbstractContextManager[BinaryIO]:
    return open(file, "rb") if isinstance(file, str) else nullcontext(file)


def _apart(file: str | io.BytesIO) -> str | io.BytesIO:
    """`file` with a position of its own, while another decoder reads it."""
    return file if isinstance(file, str) else io.BytesIO(file.getvalue())


def _block_frames(channels: int) -> int:
    return max(1, 2 * BLOCK_FRAMES // max(2, channels))


def _mono(samples: Samples) -> Samples:
    """The mean of `samples` (channels, n), (n,): librosa's numbers."""
    mean: Samples
    with np.errstate(over="ignore", invalid="ignore"):  # `stream` looks for what is not finite
        match len(samples):
            case 1:
                mean = samples[0]
            case 2:
                mean = (samples[0] + samples[1]) * np.float32(0.5)  # in a tenth of np.mean's time
            case _:
                mean = np.mean(samples, axis=0)
    return mean


def _check_header(channels: int, rate: int) -> None:
    if not 1 <= channels <= MAX_CHANNELS:
        raise UnusableError(f"claims {channels} channels, 1 to {MAX_CHANNELS} can be read")
    if rate not in SAMPLE_RATES_HZ:
        raise UnusableError(f"claims a rate of {rate} Hz, {SAMPLE_RATES_HZ[0]} to {SAMPLE_RATES_HZ[-1]} can be read")


def _check_level(samples: Samples) -> None:
    peak = max(float(samples.max()), -float(samples.min()))
    if not math.isfinite(peak):
        raise UnusableError("NaN or infinite samples")
    if peak > MAX_LEVEL:
        raise UnusableError(f"samples of up to {peak:.0e}, more than {MAX_LEVEL:.0e}")


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
    return " ".join(str(reason).split()).rstrip(".")
