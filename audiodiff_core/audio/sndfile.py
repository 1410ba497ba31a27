"""Decode with libsndfile."""

from collections.abc import Generator, Iterator

import numpy as np
import numpy.typing as npt
import soundfile

from audiodiff_core.audio.bitstreams import check_pcm
from audiodiff_core.audio.blocks import AudioFile, block_frames, opened
from audiodiff_core.audio.containers import check_whole
from audiodiff_core.audio.formats import Samples

SNDFILE_MALFORMED = 3  # libsndfile knows the format, but the file is damaged: FFmpeg would give what is left
PCM16_SUBTYPES = frozenset({"PCM_16", "ALAC_16"})
WIDER_SUBTYPES = frozenset({"PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAC_20", "ALAC_24", "ALAC_32"})
"""libsndfile's names of the encodings that keep 16-bit samples as they are."""


class ForwardSoundFile(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """Read from start to end: where it can seek, soundfile does so after each block, which takes time and changes the samples of an MP3."""

    def seekable(self) -> bool:
        return False


def sndfile_blocks(sound: soundfile.SoundFile, file: AudioFile) -> Iterator[Samples]:
    """Yield the channels in blocks (channels, n). Raises UnusableError at the end of a file that holds less than it states."""
    with sound:
        read = yield from channel_blocks(sound, sound.frames)
        with opened(file) as content:
            check_whole(sound, read, content)


def channel_blocks(sound: soundfile.SoundFile, length: int) -> Generator[Samples, None, int]:
    """Yield up to `length` frames in blocks (channels, n), as far as libsndfile reads them; return their number.

    Raises UnusableError where PCM samples are a stream of DTS or AC-3.
    """
    frames = block_frames(sound.channels)
    read = 0
    while read < length and len(block := _read_block(sound, min(length - read, frames))):
        read += len(block)
        yield block.T
    return read


def _read_block(sound: soundfile.SoundFile, count: int) -> Samples:
    """Read up to `count` frames (n, channels). 16-bit samples are read as integers, which is faster; the result is equal."""
    if sound.subtype in PCM16_SUBTYPES:
        integers: npt.NDArray[np.int16] = sound.read(count, dtype="int16", always_2d=True)
        check_pcm(integers)
        return np.multiply(integers, np.float32(2**-15), dtype=np.float32)
    samples: Samples = sound.read(count, dtype="float32", always_2d=True)
    if sound.subtype in WIDER_SUBTYPES:
        check_pcm(samples, has_24_bits=sound.subtype == "PCM_24")
    return samples
