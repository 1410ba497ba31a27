"""Decoding with libsndfile."""

from collections.abc import Generator, Iterator

import numpy as np
import numpy.typing as npt
import soundfile

from audiodiff_core.audio.bitstreams import check_pcm
from audiodiff_core.audio.blocks import AudioFile, block_frames, opened
from audiodiff_core.audio.containers import check_sndfile_length
from audiodiff_core.audio.formats import Samples

SNDFILE_MALFORMED = 3
"""Error code of libsndfile for a damaged file of a supported format.

Such a file is rejected. FFmpeg would decode its undamaged rest without an error.
"""
PCM16_SUBTYPES = frozenset({"PCM_16", "ALAC_16"})
"""Subtypes of libsndfile for 16-bit samples."""
WIDER_SUBTYPES = frozenset({"PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAC_20", "ALAC_24", "ALAC_32"})
"""Subtypes of libsndfile with more than 16 bits, which represent 16-bit samples exactly."""


class ForwardSoundFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """Sound file that is read from start to end.

    In a seekable file, soundfile seeks after each block. Seeking takes time and changes the samples of an MP3.
    """

    def seekable(self) -> bool:
        return False


def sndfile_blocks(sound: soundfile.SoundFile, file: AudioFile) -> Iterator[Samples]:
    """Decode a file to its end.

    Args:
        sound: The file as opened by libsndfile.
        file: The same file.

    Yields:
        Blocks (channels, n).

    Raises:
        UnusableError: The file holds less or more audio than it states, or its PCM samples contain DTS or AC-3.
    """
    with sound:
        read = yield from channel_blocks(sound, sound.frames)
        with opened(file) as content:
            check_sndfile_length(sound, read, content)


def channel_blocks(sound: soundfile.SoundFile, length: int) -> Generator[Samples, None, int]:
    """Decode up to `length` frames.

    Yields:
        Blocks (channels, n).

    Returns:
        The number of frames decoded. It is less than `length` if libsndfile stops earlier.

    Raises:
        UnusableError: PCM samples contain DTS or AC-3.
    """
    frames = block_frames(sound.channels)
    read = 0
    while read < length and len(block := _read_block(sound, min(length - read, frames))):
        read += len(block)
        yield block.T
    return read


def _read_block(sound: soundfile.SoundFile, count: int) -> Samples:
    """Read up to `count` frames (n, channels)."""
    if sound.subtype in PCM16_SUBTYPES:  # reading integers is faster, with the same result
        integers: npt.NDArray[np.int16] = sound.read(count, dtype="int16", always_2d=True)
        check_pcm(integers)
        return np.multiply(integers, np.float32(2**-15), dtype=np.float32)
    samples: Samples = sound.read(count, dtype="float32", always_2d=True)
    if sound.subtype in WIDER_SUBTYPES:
        check_pcm(samples, has_24_bits=sound.subtype == "PCM_24")
    return samples
