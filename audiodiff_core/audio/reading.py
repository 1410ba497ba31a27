"""Audio files of any kind as mono float32 samples at one rate, in a stream of blocks.

1. `open_local` makes the source a local file (remote objects are spooled to a temporary file).
2. libsndfile reads it block by block (`sndfile`); where it cannot, FFmpeg does (`ffmpeg`). Ogg is read link by link (`ogg`).
   An MP3 file may hold several streams (`mp3`).
3. Channels are averaged and soxr (HQ) resamples, both as a stream, so that memory does not grow with the file.
4. A file that holds less than it states (`containers`), or samples that are no numbers, is an error, raised where it shows.
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
"""Default bound of `decode_audio` in seconds: 1.3 GB at 22,050 Hz."""


def decode_audio(
    source: str | Path | bytes,
    sample_rate: int,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    longest_s: float = LONGEST_DECODED_S,
    meter: PeakMeter | None = None,
) -> Samples:
    """Decode audio to mono float32 samples (n,) at `sample_rate` Hz, nominally in [-1, 1].

    `start_s` and `duration_s` select a part in seconds. Decoding stops at the end of the part, so damage after it is not detected.
    The part is shorter, or empty, if the audio ends before it. `longest_s` bounds the samples that are kept, 4 hours by default.
    `meter` is given the peaks of the file before resampling.
    The numbers are those of `librosa.load(source, sr=sample_rate, mono=True)` if libsndfile decodes the file. Of a chain of Ogg streams, librosa loads
    only the first.
    Raises AudioDecodeError for a source that is not audio, empty, corrupt, truncated or longer than `longest_s`, and for non-finite samples;
    OSError where the storage that holds the source fails.
    """
    if not math.isfinite(start_s) or not math.isfinite(duration_s or 0.0):
        raise ValueError(f"start_s {start_s}, duration_s {duration_s}: a part of audio has a finite start and duration")
    first = round(start_s * sample_rate)
    stop = math.inf if duration_s is None else first + round(duration_s * sample_rate)
    if first < 0 or stop < first:
        raise ValueError(
            f"start_s {start_s}, duration_s {duration_s}: a part of audio starts at 0 s or later and ends after its start"
        )
    kept = bytearray()  # grows in place: a list of blocks would need twice the memory when it is joined
    end = 0
    with closing(stream(source, sample_rate, meter)) as blocks:
        for block in blocks:
            begin, end = end, end + len(block)
            kept += block[max(0, first - begin) : max(0, int(min(stop, end)) - begin)].tobytes()
            if len(kept) > longest_s * sample_rate * block.itemsize:
                raise too_long(source, len(kept) / block.itemsize / sample_rate, longest_s)
            if end >= stop:
                break
    return np.frombuffer(kept, np.float32)


def too_long(source: str | Path | bytes, at_least_s: float, longest_s: float) -> AudioDecodeError:
    """The error for audio of which more than `longest_s` seconds would be kept."""
    reason = f"lasts {at_least_s:.0f} s or more, at most {longest_s:.0f} s are decoded at once: use a shorter file or a part of the audio"
    return AudioDecodeError(_name(source), reason)


def stream(
    source: str | Path | bytes, sample_rate: int, meter: PeakMeter | None = None, watch: Watch | None = None
) -> Generator[Samples, None, None]:
    """Decode audio in blocks of a few seconds, of any length. `source` is a path, an fsspec URI or the bytes of a file.

    `meter` is given the peaks of the file before resampling, at least as far as the blocks yielded reach.
    `watch` is told of the header, and of each block before it is resampled.
    """
    name = _name(source)
    total = 0
    try:
        with open_local(source) as local, without_leading_tags(local) as file:
            rate, stated_s, channels = _channel_blocks(file)
            if watch is not None:
                watch.opened(stated_s)
                channels = watched(channels, watch)
            means = map(mono, channels) if meter is None else meter.averaged(rate, channels)
            for block in _resampled(rate, means, sample_rate):
                check_level(block)
                total += len(block)
                yield block
    except (soundfile.LibsndfileError, av.error.FFmpegError) as error:
        _require_fault_of_file(error)
        raise AudioDecodeError(name, f"corrupt or truncated ({one_line(error)})") from error
    except UnusableError as error:
        raise AudioDecodeError(name, str(error)) from error
    if total == 0:
        raise AudioDecodeError(name, "no samples")


def _name(source: str | Path | bytes) -> str:
    return "<bytes>" if isinstance(source, bytes) else str(source)


@contextmanager
def open_local(source: str | Path | bytes) -> Iterator[str | io.BytesIO]:
    """`source` as something that decoders seek in quickly: a local path, or bytes in memory."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    if "://" not in str(source):  # a local name may hold '::', which fsspec would take for a chain of filesystems
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
    """Return the rate in Hz, the stated seconds and the channels in blocks (channels, n), by the first decoder that knows the format.

    The seconds are None where the header states none, and for MP3 and Ogg, whose first stream states only its own.
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
        refusal = "a header that was never finished"
    except soundfile.LibsndfileError as error:
        refusal = one_line(error)
        if error.code == SNDFILE_MALFORMED:
            raise UnusableError(f"corrupt or truncated ({refusal})") from error
    except TypeError:  # the extension says that there is no header
        refusal = "no header"
    with opened(file) as content:
        check_sample_tables(content)
        content.seek(0)
    try:
        return ffmpeg_blocks(file)
    except (UnusableError, av.error.FFmpegError) as error:
        _require_fault_of_file(error)
        raise UnusableError(f"not audio that can be read (libsndfile: {refusal}; FFmpeg: {one_line(error)})") from error


def _require_fault_of_file(error: Exception) -> None:
    """Raise OSError if a decoder's error is due to the machine or to the storage of the file."""
    number = getattr(error, "errno", None)
    if number in MACHINE_ERRORS:
        raise OSError(number, os.strerror(number)) from error


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
