"""What an audio file's container states about its length, and whether the file holds that much.

A file that holds less than its format states is truncated, which is an error. A length is stated by the header of wav, aiff and FLAC, by an MP3's Xing tag,
by the sample table of MP4 and by the last page of Ogg. AAC in ADTS and MP3 without a tag (`mp3`) state none and give what they hold. So does a wav whose writer could
not go back to its header, as into a pipe: it states a size of about 2 or 4 GiB, or none, and is read to its end.
"""

import re
from typing import BinaryIO

import soundfile

from audiodiff_core.audio.formats import UnusableError
from audiodiff_core.audio.ogg import check_ogg_end
from audiodiff_core.audio.riff import is_placeholder

UNKNOWN_FRAMES = (1 << 63) - 1  # libsndfile's count for a FLAC stream of no stated length

# Lines of libsndfile's log, which ends after 2 KB: a cut wav with so much text before its samples is not noticed
_CUT_DATA = re.compile(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)


def check_whole(sound: soundfile.SoundFile, read: int, content: BinaryIO) -> None:
    """Raises UnusableError where the `read` frames of `sound`, all that libsndfile found in `content`, are not all that the file states."""
    log = sound.extra_info
    if "reports a hole" in log:
        raise UnusableError("corrupt: a part of its Ogg stream is missing")
    if sound.format == "OGG":
        check_ogg_end(content, log)
    if read < sound.frames < UNKNOWN_FRAMES:
        check_length(read, sound.frames, sound.samplerate)
    if cut := _CUT_DATA.search(log):
        stated, held = int(cut[1]), int(cut[2])
        if not is_placeholder(stated):
            check_length(read, read * stated // max(held, 1), sound.samplerate)


def check_length(read: int, stated: int, rate: int) -> None:
    """Raises UnusableError where more is missing than the delay of a decoder or a careless header explain: a tenth of the frames, or a quarter of a second."""
    if stated - read > min(stated / 10, rate / 4):
        raise UnusableError(f"truncated: holds {read / rate:.2f} of the {stated / rate:.2f} seconds that it states")
