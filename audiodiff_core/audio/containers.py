"""Checks that a file holds as much audio as its container states.

A file that holds less audio than its container states is truncated. A file that holds more audio is wrong as well: its
size wrapped at 4 GiB, its header was written too early, or a second file follows the first. Both raise an error.

The length is stated in the header of WAV, AIFF and FLAC, in the sample table of MP4, in the duration of Matroska, on
the last page of Ogg, and in the tag of MP3 (see `mp3`). The following files are read to their end without a check:

- AAC in ADTS, which states no length.
- WAV written to a pipe, whose header states about 2 or 4 GiB or no size, because its writer could not seek back.
- Ogg whose last page is not marked as the last, because the recorder was stopped. A missing page, or a file that ends
  inside a page, is an error (see `ogg_links`).
"""

import re
from typing import BinaryIO

import soundfile

from audiodiff_core.audio.chunks import data_chunk
from audiodiff_core.audio.flac import check_flac_end
from audiodiff_core.audio.formats import UnusableError
from audiodiff_core.audio.riff import is_placeholder

SAMPLE_BYTES = {
    "PCM_S8": 1,
    "PCM_U8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
    "ULAW": 1,
    "ALAW": 1,
}
UNKNOWN_FRAMES = (1 << 63) - 1
"""Frame count that libsndfile reports for a FLAC stream that states no length."""

# libsndfile cuts its log after 2 KB, so a truncated WAV with more metadata before its samples passes this check.
_CUT_DATA = re.compile(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)


def check_sndfile_length(sound: soundfile.SoundFile, read: int, content: BinaryIO) -> None:
    """Check that libsndfile decoded as many frames as the file states.

    Args:
        sound: The file as opened by libsndfile.
        read: Number of frames decoded.
        content: The bytes of the file.

    Raises:
        UnusableError: The file holds more or less audio than it states.
    """
    log = sound.extra_info
    if read < sound.frames < UNKNOWN_FRAMES:
        check_length(read, sound.frames, sound.samplerate)
    if sound.format == "FLAC" and read == sound.frames < UNKNOWN_FRAMES:
        check_flac_end(content, read, sound.samplerate)
    check_data_chunk(content, read, sound.samplerate, SAMPLE_BYTES.get(sound.subtype, 0) * sound.channels)
    if cut := _CUT_DATA.search(log):
        stated, held = int(cut[1]), int(cut[2])
        if not is_placeholder(stated):
            check_length(read, read * stated // max(held, 1), sound.samplerate)


def check_data_chunk(content: BinaryIO, read: int, rate: int, frame_bytes: int = 0) -> None:
    """Check that a WAV, RF64, W64, AIFF, CAF or AU file does not hold more audio than was decoded.

    Args:
        content: The bytes of the file. Files of other formats pass.
        read: Number of frames decoded.
        rate: Sample rate in Hz.
        frame_bytes: Size of a frame, 0 if the samples are compressed.

    Raises:
        UnusableError: The file holds more audio than its header states.
    """
    chunk = data_chunk(content)
    if chunk is None or not chunk.after:
        return
    if read and not chunk.stated:  # without a stated size, the decoder reads to the end of the file
        return
    bytes_per_frame = frame_bytes or chunk.stated / max(read, 1) or 1
    stated, held = chunk.stated / bytes_per_frame, (chunk.stated + chunk.after) / bytes_per_frame
    if chunk.is_followed_by_file or held - read > min(stated / 10, rate / 4):
        raise UnusableError(f"holds {held / rate:.2f} seconds, but its header states {stated / rate:.2f}")


def check_length(read: int, stated: int, rate: int, delay: int = 0) -> None:
    """Check that a file is not much shorter than it states.

    Up to a tenth of the stated length, and at most a quarter of a second, may be missing. This tolerance covers the
    delay of decoders and imprecise headers.

    Args:
        read: Number of frames decoded.
        stated: Number of frames that the file states.
        rate: Sample rate in Hz.
        delay: Number of frames that may be missing from a file of any length.

    Raises:
        UnusableError: More audio is missing.
    """
    if stated - read > max(min(stated / 10, rate / 4), delay):
        raise UnusableError(f"truncated: holds {read / rate:.2f} of the {stated / rate:.2f} seconds that it states")
