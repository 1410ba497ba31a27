"""What an audio file's container states about its length, and whether the file holds that much.

A file that holds less than its format states is truncated, which is an error. A length is stated by the header of wav, aiff and FLAC, by an MP3's Xing tag,
by the sample table of MP4 and by the last page of Ogg. AAC in ADTS and MP3 without a tag state none and give what they hold. So does a wav whose writer could
not go back to its header, as into a pipe: it states a size of about 2 or 4 GiB, or none, and is read to its end.
"""

import os
import re
import struct
from typing import BinaryIO

import soundfile

UNKNOWN_FRAMES = (1 << 63) - 1  # libsndfile's count for a FLAC stream of no stated length
OGG_PAGE_BYTES = 65_307  # at most
OGG_LAST_PAGE = 4  # a flag
MP4_CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"})

# Lines of libsndfile's log, which ends after 2 KB: a cut wav with so much text before its samples is not noticed
_CUT_DATA = re.compile(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_RIFF_SIZE = re.compile(r"^Length : (\d+)\nRIFF : (\d+)", re.MULTILINE)
_OGG_END = re.compile(r"^ *(?:PCM end|Last Granule pos) *: (\d+)", re.MULTILINE)


class UnusableError(Exception):
    """A file that gives no usable audio, and why, in a few words."""


def check_whole(sound: soundfile.SoundFile, read: int, content: BinaryIO) -> None:
    """Raises UnusableError where the `read` frames of `sound`, all that libsndfile found in `content`, are not all that the file states."""
    log = sound.extra_info
    if "reports a hole" in log:
        raise UnusableError("corrupt: a part of its Ogg stream is missing")
    if sound.format == "OGG":
        _check_ogg_end(content, log)
    if read < sound.frames < UNKNOWN_FRAMES and (sound.format != "MP3" or _states_mp3_length(content)):
        check_length(read, sound.frames, sound.samplerate)
    if cut := _CUT_DATA.search(log):
        stated, held = int(cut[1]), int(cut[2])
        if not _is_placeholder(stated):
            check_length(read, read * stated // max(held, 1), sound.samplerate)


def check_length(read: int, stated: int, rate: int) -> None:
    """Raises UnusableError where more is missing than the delay of a decoder or a careless header explain: a tenth of the frames, or a quarter of a second."""
    if stated - read > min(stated / 10, rate / 4):
        raise UnusableError(f"truncated: holds {read / rate:.2f} of the {stated / rate:.2f} seconds that it states")


def is_unbroken_ogg(content: BinaryIO) -> bool:
    """Whether an Ogg file is one stream, its pages in sequence from the first to the one that is marked as the last; a tag may follow."""
    serial = number = 0
    while (header := content.read(27))[:4] == b"OggS" and len(header) == 27:
        kind, page_serial, page_number, segments = struct.unpack("<5xB8xII4xB", header)
        serial = serial if number else page_serial
        if (page_serial, page_number) != (serial, number):
            return False
        content.seek(sum(content.read(segments)), os.SEEK_CUR)
        number += 1
        if kind & OGG_LAST_PAGE:
            tail = content.read(OGG_PAGE_BYTES)
            return len(tail) < OGG_PAGE_BYTES and b"OggS" not in tail
    return False


def check_sample_tables(content: BinaryIO) -> None:
    """Raises UnusableError where an MP4 file states more packets than it has room for: FFmpeg takes memory for each of them."""
    room = content.seek(0, os.SEEK_END)
    parts = [(0, room)]
    while parts:
        start, end = parts.pop()
        content.seek(start)
        size, kind, *fields = struct.unpack(">I4s4I", content.read(24).ljust(24, b"\0"))
        stop = start + (fields[0] << 32 | fields[1] if size == 1 else size)  # the start of the next box
        claimed = {b"stsz": fields[2] * (fields[1] or 4), b"trun": fields[1]}.get(kind, 0)  # one byte for a packet, or its line in the table of sizes
        if claimed > room:
            raise UnusableError(f"states packets of {claimed} bytes or more, in a file of {room}")
        if start + 8 <= stop < end:
            parts.append((stop, end))
        if kind in MP4_CONTAINERS and start + 8 < end:
            parts.append((start + 8, min(stop, end)))


def is_unfinished(log: str) -> bool:
    """Whether libsndfile's log is that of a wav whose header was written before its samples, and left so."""
    sizes = _RIFF_SIZE.search(log)
    return sizes is not None and (int(sizes[2]) + 8 < int(sizes[1]) or _is_placeholder(int(sizes[2])))


def _is_placeholder(size: int) -> bool:
    """Whether `size` in bytes is what programs write where they do not know it yet: near 2 or 4 GiB."""
    return min(abs(size - (1 << 31)), abs(size - (1 << 32))) <= 4_096


def _check_ogg_end(content: BinaryIO, log: str) -> None:
    """Raises where the last page of the first stream is cut, is not marked as the last, or ends later than the last one that libsndfile took."""
    content.seek(14)
    serial = content.read(4)
    content.seek(max(0, content.seek(0, os.SEEK_END) - 2 * OGG_PAGE_BYTES))
    tail = content.read()
    page = tail[tail.rfind(b"OggS") :] if b"OggS" in tail else b""
    if len(page) >= 18 and page[14:18] != serial:
        return  # another stream follows
    if len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]) or not page[5] & OGG_LAST_PAGE:
        raise UnusableError("truncated: its Ogg stream has no end")
    end = _OGG_END.search(log)
    if end and int(end[1]) < int.from_bytes(page[6:14], "little"):
        raise UnusableError("corrupt: the end of its Ogg stream cannot be read")


def _states_mp3_length(content: BinaryIO) -> bool:
    """Whether an MP3 has a Xing tag or the like. Without one, libsndfile's count of frames supposes that all of it has the bit rate of its first frame."""
    content.seek(0)
    head = content.read(10)
    if head[:3] == b"ID3":  # followed by its size in four times seven bits
        content.seek(10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10]))))
    return re.search(rb"Xing|Info|VBRI", head + content.read(4_096)) is not None
