"""Decode with libsndfile."""

import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import soundfile

from audiodiff_core.audio.bitstreams import check_pcm
from audiodiff_core.audio.blocks import block_frames, mono, opened
from audiodiff_core.audio.containers import check_whole
from audiodiff_core.audio.formats import Samples

PCM16_SUBTYPES = frozenset({"PCM_16", "ALAC_16"})
WIDER_SUBTYPES = frozenset({"PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAC_20", "ALAC_24", "ALAC_32"})
"""libsndfile's names of the encodings that keep 16-bit samples as they are."""


class ForwardSoundFile(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """Read from start to end: where it can seek, soundfile does so after each block, which takes time and changes the samples of an MP3."""

    def seekable(self) -> bool:
        return False


def mono_blocks(sound: soundfile.SoundFile, length: int) -> Iterator[Samples]:
    """The channel mean of up to `length` samples of `sound` in blocks, as far as libsndfile reads them.

    Raises UnusableError where PCM samples are a stream of DTS or AC-3.
    """
    read = 0
    frames = block_frames(sound.channels)
    while read < length and len(block := _read_block(sound, min(length - read, frames))):
        read += len(block)
        yield mono(block.T)


def _read_block(sound: soundfile.SoundFile, count: int) -> Samples:
    """Up to `count` samples (n, channels). 16-bit samples are read as integers, which takes less time; the result is equal."""
    if sound.subtype in PCM16_SUBTYPES:
        integers: npt.NDArray[np.int16] = sound.read(count, dtype="int16", always_2d=True)
        check_pcm(integers)
        return np.multiply(integers, np.float32(2**-15), dtype=np.float32)
    samples: Samples = sound.read(count, dtype="float32", always_2d=True)
    if sound.subtype in WIDER_SUBTYPES:
        check_pcm(samples, has_24_bits=sound.subtype == "PCM_24")
    return samples


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
