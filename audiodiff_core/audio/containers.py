"""Check the length that an audio file's container states against what the file holds.

A file that holds less than its format states is truncated, which is an error. A file that holds more is an error too:
a size that wrapped at 4 GiB, a header written too early, or a second file behind the first. A length is stated by the
header of wav, aiff and FLAC, by the sample table of MP4, by the duration of Matroska and by the last page of Ogg; `mp3` reads what an MP3's tag
states. AAC in ADTS states none and gives what it holds. So does a wav whose writer could not go back to its header, as
into a pipe: it states a size of about 2 or 4 GiB, or none, and is read to its end. An Ogg
stream whose last page is not marked as such (the recorder was stopped) also gives what it holds; a missing page, and a
file that ends inside a page, are found by `ogg_links`.
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
UNKNOWN_FRAMES = (1 << 63) - 1  # libsndfile's count for a FLAC stream of no stated length

# Lines of libsndfile's log, which ends after 2 KB: a cut wav with so much text before its samples is not noticed
_CUT_DATA = re.compile(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)


def check_whole(sound: soundfile.SoundFile, read: int, content: BinaryIO) -> None:
    """Raises UnusableError where the `read` frames of `sound`, all that libsndfile found in `content`, are not all that the file states."""
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
    """Raise UnusableError where a file made of chunks holds more than the `read` frames at `rate` Hz that were decoded.

    `frame_bytes`: the size of a frame, 0 if the samples are compressed.
    """
    chunk = data_chunk(content)
    if (
        chunk is None or not chunk.after or (read and not chunk.stated)
    ):  # of no stated size: decoded to the end of the file
        return
    bytes_of_frame = frame_bytes or chunk.stated / max(read, 1) or 1
    stated, held = chunk.stated / bytes_of_frame, (chunk.stated + chunk.after) / bytes_of_frame
    if chunk.is_followed_by_file or held - read > min(stated / 10, rate / 4):
        raise UnusableError(f"holds {held / rate:.2f} seconds, its header states {stated / rate:.2f}")


def check_length(read: int, stated: int, rate: int) -> None:
    """Raises UnusableError where more is missing than the delay of a decoder or a careless header explain: a tenth of the frames, or a quarter of a second."""
    if stated - read > min(stated / 10, rate / 4):
        raise UnusableError(f"truncated: holds {read / rate:.2f} of the {stated / rate:.2f} seconds that it states")
