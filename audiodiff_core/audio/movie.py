"""The amount of audio in an MP4 file (m4a), which may be more than its sample tables state."""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from audiodiff_core.audio.formats import UnusableError

BLOCK_ENTRIES = 1 << 18
PARENTS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl"})
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
    for kind, start, end in _boxes(content, 0, length):
        if kind in (b"moof", b"stz2"):
            can_compare = False
        if kind == b"mdat":
            media += end - start
        if kind == b"moov":
            movies += 1
        if kind == b"stsz":
            table_bytes = _table_bytes(content, start)
            can_compare = can_compare and table_bytes is not None
            named += table_bytes or 0
    if movies > 1:
        raise UnusableError(f"holds {movies} MP4 files, the first one of {read / rate:.2f} seconds; split the file")
    if can_compare and named and media - named > named * SPARE_SHARE:
        held = read * media / named
        raise UnusableError(f"holds about {held / rate:.2f} seconds, its sample tables state {read / rate:.2f}")


def _boxes(content: BinaryIO, start: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of the boxes in a range of `content`, and of the boxes within them."""
    while start + 8 <= end:
        content.seek(start)
        size, kind, long_size = struct.unpack(">I4sQ", content.read(16).ljust(16, b"\0"))
        head = 16 if size == 1 else 8
        stop = end if size == 0 else start + (long_size if size == 1 else size)
        if not start + head <= stop <= end:
            return
        yield kind, start + head, stop
        if kind in PARENTS and depth < len(PARENTS):
            yield from _boxes(content, start + head, stop, depth + 1)
        start = stop


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
