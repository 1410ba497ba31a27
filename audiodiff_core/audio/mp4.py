"""Boxes of MP4 files."""

import os
import struct
from typing import BinaryIO

from audiodiff_core.audio.formats import UnusableError

MP4_CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"})


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
