"""Decoding with FFmpeg (PyAV)."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import av.error
from av.stream import Disposition

from audiodiff_core.audio.bitstreams import check_pcm
from audiodiff_core.audio.blocks import AudioFile, block_frames, independent_handle, opened
from audiodiff_core.audio.containers import check_data_chunk, check_length
from audiodiff_core.audio.formats import Samples, UnusableError, check_header, one_line
from audiodiff_core.audio.matroska import is_matroska, stated_seconds
from audiodiff_core.audio.movie import check_movie

ENCODINGS_IN_PCM = {"dca": "DTS", "ac3": "AC-3", "eac3": "AC-3"}
FFMPEG_FORMATS = "mov,aac,mp3,ogg,wav,flac,aiff,matroska,caf"
"""Allowed formats. Formats that refer to other files or addresses, such as playlists, are excluded."""
FORMATS_WITHOUT_DURATION = frozenset({"aac", "mp3"})
"""Formats that state no duration. FFmpeg estimates the duration from the first bit rate."""

TIMED_STREAMS = frozenset({"audio", "video", "subtitle"})
"""Types of streams that can determine the duration of a Matroska file."""

MATROSKA_DELAY = 1_152
"""Maximum number of samples that the duration of a Matroska file counts and a decoder drops: a frame of MP3."""


def ffmpeg_container(file: str | BinaryIO) -> Any:
    """Open a file with PyAV as one of the allowed formats."""
    # Without the prefix `file:`, FFmpeg interprets the part of a path before a colon as a protocol.
    source = f"file:{file}" if isinstance(file, str) else file
    return av.open(source, options={"format_whitelist": FFMPEG_FORMATS}, metadata_errors="replace")


def ffmpeg_blocks(file: AudioFile) -> tuple[int, float | None, Iterator[Samples]]:
    """Open the first audio stream of a file.

    FFmpeg keeps the sample table of an MP4 file in memory: about 11 MB for an hour of audio.

    Returns:
        The sample rate in Hz, the length in seconds that the file states (or None), and blocks of samples
        (channels, n).

    Raises:
        UnusableError: The file has no audio stream that can be decoded. Iteration raises the error if the file holds
            more or less audio than it states.
    """
    container = ffmpeg_container(file)
    if not container.streams.audio:
        raise UnusableError("no audio stream")
    context = container.streams.audio[0].codec_context
    if context is None or not context.channels:
        raise UnusableError("its audio stream has an unknown codec or no channels")
    check_header(context.channels, context.sample_rate)
    is_stated = container.duration and container.format.name not in FORMATS_WITHOUT_DURATION
    stated_s = container.duration / av.time_base if is_stated else None
    return context.sample_rate, stated_s, _ffmpeg_frames(container, context.sample_rate, file)


def _ffmpeg_frames(container: Any, rate: int, file: AudioFile) -> Iterator[Samples]:
    """Yield blocks of the first audio stream, each joined from frames of about 1,024 samples."""
    track = container.streams.audio[0]
    to_float = av.AudioResampler(format="fltp", rate=rate)
    queue: Any = av.AudioFifo()
    is_lossless = track.codec_context.codec.lossless
    frame_format = None
    read, end_s = 0, 0.0
    is_only_stream = all(
        stream is track or stream.type not in TIMED_STREAMS or _is_cover(stream) for stream in container.streams
    )
    with container:
        for frame in _decoded(container, track):
            frame_format = frame_format or (frame.format.name, frame.layout.name, rate)
            if frame_format != (frame.format.name, frame.layout.name, frame.sample_rate):
                raise UnusableError("changes its channels or its rate midway")
            read += frame.samples
            end_s = max(end_s, (frame.time or 0.0) + frame.samples / rate)
            for part in to_float.resample(frame):
                part.pts = None  # the queue rejects gaps between time stamps
                queue.write(part)
            if queue.samples >= block_frames(track.channels):
                yield _checked(queue.read().to_ndarray(), is_lossless)
        if queue.samples:
            yield _checked(queue.read().to_ndarray(), is_lossless)
        if track.frames and track.duration:  # a sample table states both
            check_length(read, int(track.duration * track.time_base * rate), rate)
    with opened(independent_handle(file)) as content:
        check_data_chunk(content, read, rate)
        check_movie(content, read, rate)
        if is_matroska(content) and (stated := stated_seconds(content)) and is_only_stream:
            check_length(round(end_s * rate), round(stated * rate), rate, MATROSKA_DELAY)


def _decoded(container: Any, track: Any) -> Iterator[Any]:
    """Yield the frames of `track`.

    FFmpeg also decodes DTS and AC-3 at the start of the samples of a PCM WAV file. If decoding such a file fails, the
    error message names the encoding.
    """
    try:
        yield from container.decode(track)
    except av.error.FFmpegError as error:
        if encoding := ENCODINGS_IN_PCM.get(track.codec_context.name):
            raise UnusableError(
                f"contains {encoding}, not PCM samples, and cannot be decoded ({one_line(error)})"
            ) from error
        raise


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _checked(samples: Samples, is_lossless: bool) -> Samples:
    """Return `samples` (channels, n) after a check that lossless samples do not contain DTS or AC-3."""
    if is_lossless:
        check_pcm(samples.T)
    return samples
