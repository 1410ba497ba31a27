"""Audio files of any kind as mono float32 samples at one rate, in a stream of blocks.

1. `open_local` makes the source a local file (remote objects are spooled to a temporary file).
2. libsndfile reads it block by block (`sndfile`); where it cannot, FFmpeg does (`ffmpeg`). FFmpeg also decodes sound Ogg Vorbis (`vorbis`).
   An MP3 file may hold several streams (`mp3`).
3. Channels are averaged and soxr (HQ) resamples, both as a stream, so that memory does not grow with the file.
4. A file that holds less than it states (`containers`), or samples that are no numbers, is an error, raised where it shows.
"""

import io
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av.error
import fsspec
import numpy as np
import soundfile
import soxr

from audiodiff_core.audio.blocks import check_level, opened
from audiodiff_core.audio.ffmpeg import ffmpeg_blocks
from audiodiff_core.audio.formats import AudioDecodeError, Samples, UnusableError, check_header, one_line
from audiodiff_core.audio.mp3 import mp3_blocks
from audiodiff_core.audio.mp4 import check_sample_tables
from audiodiff_core.audio.riff import is_unfinished
from audiodiff_core.audio.sndfile import ForwardSoundFile, sndfile_blocks
from audiodiff_core.audio.vorbis import is_plain_vorbis, vorbis_blocks

SNDFILE_MALFORMED = 3  # libsndfile knows the format, but the file is damaged: FFmpeg would give what is left


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
                check_level(block)
                total += len(block)
                yield block
    except (soundfile.LibsndfileError, av.error.FFmpegError) as error:
        raise AudioDecodeError(name, f"corrupt or truncated ({one_line(error)})") from error
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


def _mono_blocks(file: str | io.BytesIO) -> tuple[int, Iterator[Samples]]:
    """The rate in Hz and the channel mean in blocks, by the first decoder that knows the format."""
    try:
        sound = ForwardSoundFile(file)
        if sound.frames or not is_unfinished(sound.extra_info):
            check_header(sound.channels, sound.samplerate)
            if sound.format == "MP3":
                return sound.samplerate, mp3_blocks(sound, file)
            return sound.samplerate, vorbis_blocks(sound, file) if is_plain_vorbis(sound, file) else sndfile_blocks(sound, file)
        refusal = "a header that was never finished"
    except soundfile.LibsndfileError as error:
        refusal = one_line(error)
        if error.code == SNDFILE_MALFORMED:
            raise UnusableError(f"corrupt or truncated ({refusal})") from error
    except TypeError:  # the extension says that there is no header
        refusal = "no header"
    try:
        with opened(file) as content:
            check_sample_tables(content)
            content.seek(0)
    except OSError as error:
        raise UnusableError(f"cannot be opened ({error.strerror})") from error
    try:
        return ffmpeg_blocks(file)
    except (UnusableError, av.error.FFmpegError) as error:
        raise UnusableError(f"not audio that can be read (libsndfile: {refusal}; FFmpeg: {one_line(error)})") from error


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
