"""Check of the audio in an MP4 file (m4a) against its sample tables."""

import os
import struct
from typing import BinaryIO

import numpy as np

from audiodiff_core.audio.formats import UnusableError
from audiodiff_core.audio.mp4 import boxes

BLOCK_ENTRIES = 1 << 18
FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"})
MAX_UNLISTED_FRACTION = 0.1
"""Maximum size of unlisted media data, as a fraction of the media data listed in sample tables.

Editors leave unlisted media data in a file.
"""


def check_movie(content: BinaryIO, read: int, rate: int) -> None:
    """Check that an MP4 file does not hold more audio than its sample tables list.

    The media data of fragmented files is not checked, because their tables are spread over the file.

    Args:
        content: The bytes of the file. Files of other formats pass.
        read: Number of frames decoded. The decoder reads only the frames that the sample tables list.
        rate: Sample rate in Hz.

    Raises:
        UnusableError: The file holds unlisted media data, or a second MP4 file.
    """
    length = content.seek(0, os.SEEK_END)
    content.seek(4)
    if content.read(4) not in FIRST_BOXES:
        return
    listed = media = movies = 0
    can_compare = True
    for box in boxes(content, length):
        match box.kind:
            case b"moof" | b"stz2":
                can_compare = False
            case b"mdat":
                media += box.stop - box.content
            case b"moov":
                movies += 1
            case b"stsz":
                table_bytes = _table_bytes(content, box.content)
                can_compare = can_compare and table_bytes is not None
                listed += table_bytes or 0
    if movies > 1:
        raise UnusableError(f"holds {movies} MP4 files, the first one of {read / rate:.2f} seconds; split the file")
    if can_compare and listed and media - listed > listed * MAX_UNLISTED_FRACTION:
        held = read * media / listed
        raise UnusableError(f"holds about {held / rate:.2f} seconds, but its sample tables state {read / rate:.2f}")


def _table_bytes(content: BinaryIO, start: int) -> int | None:
    """Return the sum of the sizes in the `stsz` box at `start`, or None if all samples have one size.

    A single size is not reliable: files may state the size of PCM samples as 1, and decoders ignore this value.
    """
    content.seek(start + 4)
    size, count = struct.unpack(">2I", content.read(8).ljust(8, b"\0"))
    if size:
        return None
    total = 0
    while count > 0 and (block := content.read(4 * min(count, BLOCK_ENTRIES))):
        total += int(np.frombuffer(block[: len(block) // 4 * 4], ">u4").sum(dtype=np.uint64))
        count -= BLOCK_ENTRIES
    return total
