"""Decode with libsndfile."""

import io
from collections.abc import Iterator

import soundfile

from audiodiff_core.audio.blocks import block_frames, mono, opened
from audiodiff_core.audio.containers import check_whole
from audiodiff_core.audio.formats import Samples


class ForwardSoundFile(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """Read from start to end: where it can seek, soundfile does so after each block, which takes time and changes the samples of an MP3."""

    def seekable(self) -> bool:
        return False


def mono_blocks(sound: soundfile.SoundFile, length: int) -> Iterator[Samples]:
    """The channel mean of up to `length` samples of `sound` in blocks, as far as libsndfile reads them."""
    read = 0
    frames = block_frames(sound.channels)
    while read < length and len(block := sound.read(min(length - read, frames), dtype="float32", always_2d=True)):
        read += len(block)
        yield mono(block.T)


def sndfile_blocks(sound: soundfile.SoundFile, file: str | io.BytesIO, given: int = 0) -> Iterator[Samples]:
    """The channel mean of `sound` in blocks, without the first `given` samples, up to the end that `file` states."""
    read = 0
    with sound:
        for block in mono_blocks(sound, sound.frames):
            fresh = block[max(0, given - read) :]
            read += len(block)
            if len(fresh):
                yield fresh
        with opened(file) as content:
            check_whole(sound, read, content)
