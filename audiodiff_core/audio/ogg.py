"""Decoding of Ogg files: Vorbis and Opus with libsndfile, FLAC and Speex with FFmpeg.

An Ogg file is a chain of one or more links, each with its own header. The links are decoded one by one, because
libsndfile reads only the first link of a chain and rejects files whose first stream is not audio.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import BinaryIO

import av.error
import soundfile

from audiodiff_core.audio.blocks import AudioFile, opened
from audiodiff_core.audio.containers import UNKNOWN_FRAMES, check_length
from audiodiff_core.audio.ffmpeg import ffmpeg_blocks
from audiodiff_core.audio.file_parts import FileParts, Part
from audiodiff_core.audio.formats import Samples, UnusableError, check_header, one_line
from audiodiff_core.audio.ogg_links import OPUS, VORBIS, Link, links
from audiodiff_core.audio.ogg_pages import CAPTURE, LAST_PAGE
from audiodiff_core.audio.sndfile import SNDFILE_MALFORMED, ForwardSoundFile, channel_blocks

Decoded = tuple[int, Iterator[Samples]]
"""Sample rate in Hz, and blocks of samples (channels, n)."""


def is_ogg(file: AudioFile) -> bool:
    """Return True if a file begins like an Ogg file."""
    with opened(file) as content:
        content.seek(0)
        is_capture = content.read(len(CAPTURE)) == CAPTURE
        content.seek(0)  # decoders start at the current position
        return is_capture


def ogg_blocks(file: AudioFile) -> Decoded:
    """Open an Ogg file, including all links of a chain.

    Returns:
        The sample rate in Hz, and blocks of samples (channels, n).

    Raises:
        UnusableError: The file has no audio that can be decoded. Iteration raises the error if the file is damaged or
            truncated, or if its links have different sample rates.
    """
    decoded = _decoded_links(file)
    rate, first = next(decoded, (0, None))
    if first is None:
        raise UnusableError("no samples")
    return rate, _one_rate(rate, first, decoded)


def _one_rate(rate: int, blocks: Iterator[Samples], others: Iterator[Decoded]) -> Iterator[Samples]:
    yield from blocks
    for other_rate, more in others:
        if other_rate != rate:
            raise UnusableError(f"chained Ogg streams of {rate} and {other_rate} Hz: a chain must have one rate")
        yield from more


def _decoded_links(file: AudioFile) -> Iterator[Decoded]:
    """Yield the rate and the blocks of each link with audio.

    A link must be read to its end before the next link is requested.
    """
    with opened(file) as content:
        for link in links(content):
            if not link.is_empty:
                decode = _sndfile_link if link.audio.codec in {VORBIS, OPUS} else _ffmpeg_link
                yield decode(link, content)


def _sndfile_link(link: Link, content: BinaryIO) -> Decoded:
    try:
        sound = _opened_link(link, content)
    except soundfile.LibsndfileError as error:
        reason = "corrupt or truncated" if error.code == SNDFILE_MALFORMED else "not audio that can be read"
        raise UnusableError(f"{reason} (libsndfile: {one_line(error)})") from error
    check_header(sound.channels, sound.samplerate)
    return sound.samplerate, _checked_blocks(sound, link)


def _opened_link(link: Link, content: BinaryIO) -> soundfile.SoundFile:
    if link.audio.codec == OPUS and not link.audio.last_timed.flags & LAST_PAGE:
        # libsndfile rejects a last page that ends inside a packet and is not marked as the last. It also rejects a
        # single page that begins after position 0 and is marked as the last. Hence both variants are tried.
        with suppress(soundfile.LibsndfileError):
            return ForwardSoundFile(_file(content, link.marked_end(content)))
    return ForwardSoundFile(_file(content, link.audio_first()))


def _checked_blocks(sound: soundfile.SoundFile, link: Link) -> Iterator[Samples]:
    with sound:
        if link.audio.codec == OPUS:
            sound.seek(0)  # otherwise libsndfile keeps the pre-skip samples of streams that begin after position 0
        read = yield from channel_blocks(sound, sound.frames)
        if not link.audio.has_audio:
            raise UnusableError(
                "the audio of its Ogg stream is on a page of the header, which libsndfile does not decode"
            )
        if sound.frames < UNKNOWN_FRAMES:
            check_length(read, sound.frames, sound.samplerate)


def _ffmpeg_link(link: Link, content: BinaryIO) -> Decoded:
    try:
        rate, _, blocks = ffmpeg_blocks(_file(content, link.whole()))
    except (UnusableError, av.error.FFmpegError) as error:
        raise UnusableError(f"not audio that can be read (FFmpeg: {one_line(error)})") from error
    return rate, _counted(blocks, link.audio.stated_frames, rate)


def _counted(blocks: Iterator[Samples], stated: int, rate: int) -> Iterator[Samples]:
    read = 0
    for block in blocks:
        read += block.shape[1]
        yield block
    check_length(read, stated, rate)


def _file(content: BinaryIO, parts: Sequence[Part]) -> io.BufferedReader:
    return io.BufferedReader(FileParts(content, parts))
