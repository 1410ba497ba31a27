"""The amount of audio in an MP4 file (m4a), which may be more than its sample tables state."""

import os
import struct
from typing import BinaryIO

import numpy as np

from audiodiff_core.audio.formats import UnusableError
from audiodiff_core.audio.mp4 import boxes

BLOCK_ENTRIES = 1 << 18
FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"})
SPARE_SHARE = 0.1
"""Bytes of the media data that no sample table names, as a share of the others: players that edit leave some."""


def check_movie(content: BinaryIO, read: int, rate: int) -> None:
    """Raise UnusableError where an MP4 file holds more than the `read` samples at `rate` Hz of its sample tables.

    Files of fragments are not checked for media data that is not named: their tables are in many places.
    """
    length = content.seek(0, os.SEEK_END)
    content.seek(4)
    if content.read(4) not in FIRST_BOXES:
        return
    named = media = movies = 0
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
                named += table_bytes or 0
    if movies > 1:
        raise UnusableError(f"holds {movies} MP4 files, the first one of {read / rate:.2f} seconds; split the file")
    if can_compare and named and media - named > named * SPARE_SHARE:
        held = read * media / named
        raise UnusableError(f"holds about {held / rate:.2f} seconds, its sample tables state {read / rate:.2f}")


def _table_bytes(content: BinaryIO, start: int) -> int | None:
    """The sum of the sizes in the `stsz` box whose content begins at `start`, None for samples of one size.

    The size of PCM samples may be stated as 1, which decoders ignore.
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
