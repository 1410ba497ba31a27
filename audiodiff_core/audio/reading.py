"""Decoding of audio files to mono float32 samples at one sample rate.

1. `open_local` provides the source as a local file. A remote object is copied to a temporary file.
2. libsndfile decodes the file in blocks (`sndfile`). FFmpeg decodes the formats that libsndfile does not support
   (`ffmpeg`). Ogg is decoded link by link (`ogg`), MP3 stream by stream (`mp3`).
3. The channels of each block are averaged and resampled with soxr (HQ). Memory does not grow with the file.
4. Decoding raises an error at non-finite samples, and at the end of a file that holds less or more audio than it states
   (`containers`).
"""

import io
import math
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import av.error
import numpy as np
import soundfile
import soxr

from audiodiff_core.audio.blocks import AudioFile, PeakMeter, Watch, check_level, mono, opened, watched
from audiodiff_core.audio.containers import UNKNOWN_FRAMES
from audiodiff_core.audio.ffmpeg import ffmpeg_blocks
from audiodiff_core.audio.formats import (
    MACHINE_ERRORS,
    AudioDecodeError,
    Samples,
    UnusableError,
    check_header,
    one_line,
)
from audiodiff_core.audio.leading_tags import without_leading_tags
from audiodiff_core.audio.mp3 import mp3_blocks
from audiodiff_core.audio.mp4 import check_sample_tables
from audiodiff_core.audio.ogg import is_ogg, ogg_blocks
from audiodiff_core.audio.riff import is_unfinished
from audiodiff_core.audio.sndfile import SNDFILE_MALFORMED, ForwardSoundFile, sndfile_blocks
from audiodiff_core.files.filesystems import filesystem_of

LONGEST_DECODED_S = 4 * 3_600.0
"""Default maximum length of the result of `decode_audio`: 1.3 GB at 22,050 Hz."""


def decode_audio(
    source: str | Path | bytes,
    sample_rate: int,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    longest_s: float = LONGEST_DECODED_S,
    meter: PeakMeter | None = None,
) -> Samples:
    """Decode an audio file, or a part of it, to mono float32 samples at `sample_rate`.

    The samples equal those of `librosa.load(source, sr=sample_rate, mono=True)` if libsndfile decodes the file, except
    that librosa loads only the first link of chained Ogg files.

    Decoding stops at the end of the part, so damage after the part is not detected. If the audio ends before the end of
    the part, the result is shorter or empty.

    Args:
        source: Path, fsspec URI, or the bytes of a file.
        sample_rate: Sample rate of the result in Hz.
        start_s: Start of the part in seconds.
        duration_s: Duration of the part in seconds. None decodes to the end.
        longest_s: Maximum length of the result in seconds, 4 hours by default.
        meter: Records the peaks of the file before resampling.

    Returns:
        Samples (n,), nominally in [-1, 1].

    Raises:
        AudioDecodeError: The source is not audio, is empty, damaged or truncated, has non-finite samples, or is longer
            than `longest_s`.
        OSError: The storage of the source failed.
        ValueError: `start_s` or `duration_s` is negative or not finite.
    """
    if not math.isfinite(start_s) or not math.isfinite(duration_s or 0.0):
        raise ValueError(f"start_s {start_s}, duration_s {duration_s}: both must be finite")
    first = round(start_s * sample_rate)
    stop = math.inf if duration_s is None else first + round(duration_s * sample_rate)
    if first < 0 or stop < first:
        raise ValueError(f"start_s {start_s}, duration_s {duration_s}: both must be at least 0")
    data = bytearray()  # grows in place; joining a list of blocks would need twice the memory
    end = 0
    with closing(stream(source, sample_rate, meter)) as blocks:
        for block in blocks:
            begin, end = end, end + len(block)
            data += block[max(0, first - begin) : max(0, int(min(stop, end)) - begin)].tobytes()
            if len(data) > longest_s * sample_rate * block.itemsize:
                raise too_long(source, len(data) / block.itemsize / sample_rate, longest_s)
            if end >= stop:
                break
    return np.frombuffer(data, np.float32)


def too_long(source: str | Path | bytes, at_least_s: float, longest_s: float) -> AudioDecodeError:
    """Return the error for audio of at least `at_least_s` seconds, which exceeds `longest_s` seconds."""
    reason = (
        f"lasts {at_least_s:.0f} s or more, at most {longest_s:.0f} s are decoded at once: "
        "use a shorter file or a part of the audio"
    )
    return AudioDecodeError(_source_name(source), reason)


def stream(
    source: str | Path | bytes, sample_rate: int, meter: PeakMeter | None = None, watch: Watch | None = None
) -> Generator[Samples, None, None]:
    """Decode an audio file of any length to blocks of mono float32 samples at `sample_rate`.

    A block lasts a few seconds.

    Args:
        source: Path, fsspec URI, or the bytes of a file.
        sample_rate: Sample rate of the blocks in Hz.
        meter: Records the peaks of the file before resampling. It covers at least the blocks yielded so far.
        watch: Observer that receives the stated length, and each block before resampling.

    Yields:
        Blocks of samples (n,), nominally in [-1, 1].

    Raises:
        AudioDecodeError: The source is not audio, is empty, damaged or truncated, or has non-finite samples.
        OSError: The storage of the source failed.
    """
    name = _source_name(source)
    total = 0
    try:
        with open_local(source) as local, without_leading_tags(local) as file:
            rate, stated_s, channels = _channel_blocks(file)
            if watch is not None:
                watch.opened(stated_s)
                channels = watched(channels, watch)
            means = map(mono, channels) if meter is None else meter.downmixed(rate, channels)
            for block in _resampled(rate, means, sample_rate):
                check_level(block)
                total += len(block)
                yield block
    except (soundfile.LibsndfileError, av.error.FFmpegError) as error:
        _raise_machine_error(error)
        raise AudioDecodeError(name, f"corrupt or truncated ({one_line(error)})") from error
    except UnusableError as error:
        raise AudioDecodeError(name, str(error)) from error
    if total == 0:
        raise AudioDecodeError(name, "no samples")


def _source_name(source: str | Path | bytes) -> str:
    return "<bytes>" if isinstance(source, bytes) else str(source)


@contextmanager
def open_local(source: str | Path | bytes) -> Iterator[str | io.BytesIO]:
    """Provide a source as a local path or as bytes in memory, in which decoders can seek quickly.

    A remote object is copied to a temporary file, which is removed on exit.

    Args:
        source: Path, fsspec URI, or the bytes of a file.

    Yields:
        A local path, or the bytes of the file.
    """
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    if "://" not in str(source):  # fsspec would interpret '::' in a local name as a chain of file systems
        yield str(Path(source).expanduser())
        return
    filesystem, path = filesystem_of(str(source))
    if "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="audiodiff-") as folder:
        local = str(Path(folder) / Path(path).name)
        filesystem.get_file(path, local)
        yield local


def _channel_blocks(file: AudioFile) -> tuple[int, float | None, Iterator[Samples]]:
    """Open a file with the first decoder that supports its format.

    Returns the sample rate in Hz, the stated length in seconds, and blocks of samples (channels, n). The length is None
    if the header states no length, and for MP3 and Ogg, whose header covers only the first stream.
    """
    if is_ogg(file):
        rate, blocks = ogg_blocks(file)
        return rate, None, blocks
    try:
        sound = ForwardSoundFile(file)
        if sound.frames or not is_unfinished(sound.extra_info):
            check_header(sound.channels, sound.samplerate)
            if sound.format == "MP3":
                return sound.samplerate, None, mp3_blocks(sound, file)
            stated_s = sound.frames / sound.samplerate if 0 < sound.frames < UNKNOWN_FRAMES else None
            return sound.samplerate, stated_s, sndfile_blocks(sound, file)
        sndfile_reason = "header was never finished"
    except soundfile.LibsndfileError as error:
        sndfile_reason = one_line(error)
        if error.code == SNDFILE_MALFORMED:
            raise UnusableError(f"corrupt or truncated ({sndfile_reason})") from error
    except TypeError:  # raised by soundfile for extensions of formats without a header
        sndfile_reason = "no header"
    with opened(file) as content:
        check_sample_tables(content)
        content.seek(0)
    try:
        return ffmpeg_blocks(file)
    except (UnusableError, av.error.FFmpegError) as error:
        _raise_machine_error(error)
        raise UnusableError(
            f"not audio that can be read (libsndfile: {sndfile_reason}; FFmpeg: {one_line(error)})"
        ) from error


def _raise_machine_error(error: Exception) -> None:
    """Raise OSError if the cause of a decoder's error is the machine or the storage, not the file."""
    number = getattr(error, "errno", None)
    if number in MACHINE_ERRORS:
        raise OSError(number, os.strerror(number)) from error


def _resampled(rate: int, blocks: Iterator[Samples], target: int) -> Iterator[Samples]:
    """Yield blocks (n,) resampled from `rate` to `target` Hz.

    N samples become ceil(N * target / rate) samples in total, whatever the sizes of the blocks.
    """
    if rate == target:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    samples_in = samples_out = 0
    for block in blocks:
        samples_in += len(block)
        out = resampler.resample_chunk(block)
        samples_out += len(out)
        if len(out):
            yield out
    tail = resampler.resample_chunk(np.empty(0, np.float32), last=True)
    missing = math.ceil(samples_in * float(target) / rate) - samples_out
    assert missing >= 0, "the resampler returned more samples than its input is long"
    if missing:
        yield np.pad(tail[:missing], (0, missing - min(missing, len(tail))))
