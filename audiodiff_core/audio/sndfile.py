"""Decode with libsndfile."""

import io
from collections.abc import Iterator

import soundfile

from audiodiff_core.audio.blocks import block_frames, opened
from audiodiff_core.audio.containers import check_whole
from audiodiff_core.audio.formats import Samples


class ForwardSoundFile(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """Read from start to end: where it can seek, soundfile does so after each block, which takes time and changes the samples of an MP3."""

    def seekable(self) -> bool:
        return False


def sndfile_blocks(sound: soundfile.SoundFile, file: str | io.BytesIO, given: int = 0) -> Iterator[Samples]:
    """The channels (channels, n) in blocks, without the first `given` frames."""
    frames = block_frames(sound.channels)
    read = 0
    with sound:
        while read < sound.frames and len(block := sound.read(min(sound.frames - read, frames), dtype="float32", always_2d=True)):
            fresh = block[max(0, given - read) :]
            read += len(block)
            if len(fresh):
                yield fresh.T
        with opened(file) as content:
            check_whole(sound, read, content)
