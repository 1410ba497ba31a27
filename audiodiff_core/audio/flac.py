"""Length of a FLAC stream according to its frame headers (RFC 9639)."""

import os
import re
from typing import BinaryIO, NamedTuple

import numpy as np

from audiodiff_core.audio.formats import UnusableError

BLOCK_BYTES = 1 << 20
END_BYTES = 1 << 18
"""Number of bytes at the end of a file that are searched for the last frames."""
MAX_HEADER_BYTES = 16
MAX_METADATA_BLOCKS = 10_000
MARKER = b"fLaC"
STREAM_STARTS = (b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22")
"""Marker and head of the first metadata block, for streams with and without further metadata blocks."""

_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_BLOCK_SIZES = (0, 192, 576, 1_152, 2_304, 4_608, 0, 0, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768)
_RATE_BYTES = {12: 1, 13: 2, 14: 2}


class Frame(NamedTuple):
    """Range of samples of a frame, from `start` up to but not including `end`."""

    start: int
    end: int


def check_flac_end(content: BinaryIO, stated: int, rate: int) -> None:
    """Check that a FLAC file ends after the samples that its header states.

    Bytes that look like a frame header occur by chance in the data. A header counts only if its frame begins at the
    sample at which another frame ends.

    Args:
        content: The bytes of the file.
        stated: Number of samples per channel that the header states.
        rate: Sample rate in Hz.

    Raises:
        UnusableError: The file holds more samples than its header states, or a second stream.
    """
    first, block_size = _first_frame(content)
    if _contains_stream(content, first):
        raise UnusableError(f"holds several FLAC streams, the first one of {stated / rate:.2f} seconds; split the file")
    start = max(first, content.seek(0, os.SEEK_END) - END_BYTES)
    content.seek(start)
    tail = content.read()
    syncs = [match.start() for match in _SYNC.finditer(tail)]
    frames = [_frame(tail[sync : sync + MAX_HEADER_BYTES], block_size) for sync in syncs]
    ends = {0, *(frame.end for frame in frames if frame)}
    held = max((frame.end for frame in frames if frame and frame.start in ends), default=0)
    if held > stated:
        raise UnusableError(f"holds {held / rate:.2f} seconds, but its header states {stated / rate:.2f}")


def _first_frame(content: BinaryIO) -> tuple[int, int]:
    """Return the position of the first frame, and the minimum block size that STREAMINFO states."""
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


def _contains_stream(content: BinaryIO, position: int) -> bool:
    """Return True if a FLAC stream begins at or after `position`."""
    content.seek(position)
    overlap = b""
    marker = np.frombuffer(MARKER, np.uint32)
    while block := content.read(BLOCK_BYTES):
        window = overlap + block
        for offset in range(len(MARKER)):
            words = np.frombuffer(window, np.uint32, (len(window) - offset) // 4, offset)
            if (words == marker).any() and any(start in window for start in STREAM_STARTS):
                return True
        overlap = window[-len(STREAM_STARTS[0]) + 1 :]
    return False


def _frame(head: bytes, fixed_size: int) -> Frame | None:
    """Return the sample range of the frame with the header `head`, or None if the header is invalid.

    `fixed_size` is the block size of a stream whose blocks all have the same size.
    """
    size_code, rate_code = head[2] >> 4 if len(head) > 4 else 0, head[2] & 0x0F if len(head) > 4 else 0
    if size_code == 0 or rate_code == 15:
        return None
    ones = 8 - (head[4] ^ 0xFF).bit_length()  # the frame or sample number is coded like a UTF-8 character
    after = 4 + max(1, ones)
    number = head[4] & (0x7F >> ones)
    for byte in head[5:after]:
        number = number << 6 | byte & 0x3F
    size = _BLOCK_SIZES[size_code]
    if size_code in (6, 7):
        size_bytes = size_code - 5
        size = int.from_bytes(head[after : after + size_bytes], "big") + 1
        after += size_bytes
    after += _RATE_BYTES.get(rate_code, 0)
    if len(head) <= after or _crc8(head[:after]) != head[after]:
        return None
    start = number if head[1] & 1 else number * fixed_size
    return Frame(start, start + size)


def _crc8(content: bytes) -> int:
    """Return the checksum of a frame header (RFC 9639, 9.1.8), with polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ 0x107 if crc & 0x80 else crc << 1
    return crc
