"""Decode Ogg Vorbis with FFmpeg, which takes three quarters of libsndfile's time."""

import io
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import av
import av.error
import soundfile

from audiodiff_core.audio import blocks
from audiodiff_core.audio.blocks import independent, opened
from audiodiff_core.audio.containers import check_whole
from audiodiff_core.audio.ffmpeg import ffmpeg_container
from audiodiff_core.audio.formats import Samples
from audiodiff_core.audio.ogg import is_unbroken_ogg
from audiodiff_core.audio.sndfile import sndfile_blocks

VORBIS_BLOCK_FRAMES = 8_192  # at most


def is_plain_vorbis(sound: soundfile.SoundFile, file: str | io.BytesIO) -> bool:
    """Whether FFmpeg gives libsndfile's samples: with more channels, their order differs; chained and damaged streams are libsndfile's."""
    if (sound.format, sound.subtype) != ("OGG", "VORBIS") or sound.channels > 2:
        return False
    with opened(independent(file)) as content:
        return is_unbroken_ogg(content)


def vorbis_blocks(sound: soundfile.SoundFile, file: str | io.BytesIO) -> Iterator[Samples]:
    """As `sndfile_blocks`, by FFmpeg as far as all samples are in their place; if that is not to the end, libsndfile goes on from there, and judges."""
    given = 0
    with suppress(av.error.FFmpegError):
        for block in _vorbis_frames(ffmpeg_container(independent(file))):
            fresh = block[:, : sound.frames - given]  # a stream of one page ends with some samples too many
            given += fresh.shape[1]
            if fresh.size:
                yield fresh
    if given < sound.frames:
        yield from sndfile_blocks(sound, file, given)
        return
    with sound, opened(file) as content:
        check_whole(sound, given, content)


def _vorbis_frames(container: Any) -> Iterator[Samples]:
    """The channels in blocks, until a frame is missing."""
    gathered: Any = av.AudioFifo()
    read = 0
    with container:
        for frame in container.decode(container.streams.audio[0]):
            if frame.pts is None or abs(frame.pts - read) > VORBIS_BLOCK_FRAMES:  # inside a page, FFmpeg estimates where its packets are
                break
            read += frame.samples
            frame.pts = None
            gathered.write(frame)
            if gathered.samples >= blocks.BLOCK_FRAMES:
                yield gathered.read().to_ndarray()
    if gathered.samples:
        yield gathered.read().to_ndarray()
