"""The length of a FLAC stream by its frame headers. Layout: RFC 9639."""

import os
import re
from typing import BinaryIO, NamedTuple

import numpy as np

from audiodiff_core.audio.formats import UnusableError

BLOCK_BYTES = 1 << 20
END_BYTES = 1 << 18
"""The last frames of a file are searched in so many bytes."""
LONGEST_HEADER_BYTES = 16
MAX_METADATA_BLOCKS = 10_000
MARKER = b"fLaC"
STREAM_STARTS = (b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22")
"""The marker and the head of the first metadata block, with another one behind it or not."""

_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_BLOCK_SIZES = (0, 192, 576, 1_152, 2_304, 4_608, 0, 0, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768)
_RATE_BYTES = {12: 1, 13: 2, 14: 2}


class Frame(NamedTuple):
    """The samples of a frame by its header: from `start` up to `end`."""

    start: int
    end: int


def check_flac_end(content: BinaryIO, stated: int, rate: int) -> None:
    """Raise UnusableError where samples or another stream follow the `stated` samples of a FLAC file at `rate` Hz.

    The header of the last frame must continue the frame before it, as single headers occur by chance.
    """
    first, block_size = _first_frame(content)
    if _holds_stream(content, first):
        raise UnusableError(f"holds several FLAC streams, the first one of {stated / rate:.2f} seconds; split the file")
    start = max(first, content.seek(0, os.SEEK_END) - END_BYTES)
    content.seek(start)
    last_bytes = content.read()
    syncs = [match.start() for match in _SYNC.finditer(last_bytes)]
    frames = [_frame(last_bytes[sync : sync + LONGEST_HEADER_BYTES], block_size) for sync in syncs]
    ends = {0, *(frame.end for frame in frames if frame)}
    held = max((frame.end for frame in frames if frame and frame.start in ends), default=0)
    if held > stated:
        raise UnusableError(f"holds {held / rate:.2f} seconds, its header states {stated / rate:.2f}")


def _first_frame(content: BinaryIO) -> tuple[int, int]:
    """The position of the first frame, and the number of samples in frames of one size."""
    position = content.seek(len(MARKER))
    block_size = 0
    for _ in range(MAX_METADATA_BLOCKS):
        head = content.read(4).ljust(4, b"\x80")
        start = content.tell()
        if head[0] & 0x7F == 0:  # STREAMINFO
            block_size = int.from_bytes(content.read(2), "big")
        position = content.seek(start + int.from_bytes(head[1:], "big"))
        if head[0] & 0x80:
            break
    return position, block_size


def _holds_stream(content: BinaryIO, position: int) -> bool:
    """True if a FLAC stream begins after `position`."""
    content.seek(position)
    kept = b""
    marker = np.frombuffer(MARKER, np.uint32)
    while block := content.read(BLOCK_BYTES):
        joined = kept + block
        for offset in range(len(MARKER)):
            words = np.frombuffer(joined, np.uint32, (len(joined) - offset) // 4, offset)
            if (words == marker).any() and any(start in joined for start in STREAM_STARTS):
                return True
        kept = joined[-len(STREAM_STARTS[0]) + 1 :]
    return False


def _frame(head: bytes, fixed_size: int) -> Frame | None:
    """The samples of the frame that begins with `head`; `fixed_size`: samples of each frame in a stream of one size."""
    size_code, rate_code = head[2] >> 4 if len(head) > 4 else 0, head[2] & 0x0F if len(head) > 4 else 0
    if size_code == 0 or rate_code == 15:
        return None
    ones = 8 - (head[4] ^ 0xFF).bit_length()  # the number is coded as a character of UTF-8
    after = 4 + max(1, ones)
    number = head[4] & (0x7F >> ones)
    for byte in head[5:after]:
        number = number << 6 | byte & 0x3F
    size = _BLOCK_SIZES[size_code]
    if size_code in (6, 7):
        bytes_of_size = size_code - 5
        size = int.from_bytes(head[after : after + bytes_of_size], "big") + 1
        after += bytes_of_size
    after += _RATE_BYTES.get(rate_code, 0)
    if len(head) <= after or _crc8(head[:after]) != head[after]:
        return None
    start = number if head[1] & 1 else number * fixed_size
    return Frame(start, start + size)


def _crc8(content: bytes) -> int:
    """Checksum of a frame header: polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ 0x107 if crc & 0x80 else crc << 1
    return crc
