"""Decode with libsndfile."""

import io
from collections.abc import Generator, Iterator

import soundfile

from audiodiff_core.audio.blocks import block_frames, opened
from audiodiff_core.audio.containers import check_whole
from audiodiff_core.audio.formats import Samples

SNDFILE_MALFORMED = 3  # libsndfile knows the format, but the file is damaged: FFmpeg would give what is left


class ForwardSoundFile(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """Read from start to end: where it can seek, soundfile does so after each block, which takes time and changes the samples of an MP3."""

    def seekable(self) -> bool:
        return False


def sndfile_blocks(sound: soundfile.SoundFile, file: str | io.BytesIO) -> Iterator[Samples]:
    """Yield the channels in blocks (channels, n). Raises UnusableError at the end of a file that holds less than it states."""
    with sound:
        read = yield from channel_blocks(sound)
        with opened(file) as content:
            check_whole(sound, read, content)


def channel_blocks(sound: soundfile.SoundFile) -> Generator[Samples, None, int]:
    """Yield the channels in blocks (channels, n); return the number of frames."""
    frames = block_frames(sound.channels)
    read = 0
    while read < sound.frames and len(block := sound.read(min(sound.frames - read, frames), dtype="float32", always_2d=True)):
        read += len(block)
        yield block.T
    return read
