"""Limits on the boxes of MP4 files, which bound the memory that FFmpeg allocates.

FFmpeg keeps an index entry of 24 to 35 bytes for each packet that a file states, even if the file does not hold the
packet. The functions here visit the boxes that FFmpeg visits and count index entries as FFmpeg does.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from audiodiff_core.audio.formats import UnusableError

MAX_BOXES = 1 << 20
"""Maximum number of boxes in a file, enough for 40 hours in fragments of one second."""

MAX_PACKETS = 1 << 23
"""Maximum number of index entries of all tracks, enough for 49 hours of AAC at 48 kHz.

FFmpeg allocates up to 300 MB for this number of entries.
"""

MP4_CONTAINERS = frozenset(
    {
        b"moov",
        b"trak",
        b"mdia",
        b"minf",
        b"stbl",
        b"moof",
        b"traf",
        b"mvex",
        b"edts",
        b"udta",
        b"dinf",
        b"tref",
        b"wave",
    }
)
MP4_DISGUISES = frozenset({b"free", b"hoov"})
"""Boxes that FFmpeg reads as `moov` if their content begins like that of a `moov` box."""

PCM_FRAMES_PER_ENTRY = 1_024


@dataclass(frozen=True)
class Box:
    """Type and position of an MP4 box."""

    kind: bytes
    """Type of the box, as four characters."""
    content: int
    """Position of the content, after the header of the box."""
    stop: int
    """Position of the end of the box."""
    fields: tuple[int, int, int]
    """The first three 32-bit numbers of the content."""


@dataclass
class _Track:
    """Counts that the tables of a track state."""

    packets: int = 0
    edits: int = 1
    chunks: int = 0
    max_chunk_frames: int = 0
    is_audio: bool = False
    has_one_frame_packets: bool = True

    def add(self, box: Box, content: BinaryIO) -> None:
        """Update the counts from a box of the track."""
        _, first, second = box.fields
        match box.kind:
            case b"stsz" | b"stz2":
                self.packets = max(self.packets, second)
            case b"elst":
                self.edits = max(self.edits, first)
            case b"hdlr":
                self.is_audio = self.is_audio or second == int.from_bytes(b"soun", "big")
                self.has_one_frame_packets = self.has_one_frame_packets and second != int.from_bytes(b"vide", "big")
            case b"stts":
                content.seek(box.content + 12)
                self.has_one_frame_packets = (
                    self.has_one_frame_packets and first == 1 and content.read(4) == b"\0\0\0\1"
                )
            case b"stco" | b"co64":
                self.chunks = max(self.chunks, min(first, box.stop - box.content))
            case b"stsc":
                content.seek(box.content + 8)
                rows = min(first, (box.stop - box.content - 8) // 12)
                table = np.frombuffer(content.read(12 * rows), ">u4").reshape(-1, 3)
                self.max_chunk_frames = max(self.max_chunk_frames, int(table[:, 1].max(initial=0)))

    def entries(self) -> int:
        """Return the number of index entries that FFmpeg allocates for the track.

        Each edit needs an entry for each packet, or for each block of PCM frames.
        """
        if self.is_audio and self.has_one_frame_packets:
            return self.chunks * (1 + self.max_chunk_frames // PCM_FRAMES_PER_ENTRY) * self.edits
        return self.packets * self.edits


def check_sample_tables(content: BinaryIO) -> None:
    """Check that an MP4 file does not state more packets than FFmpeg can index or the file can hold.

    Args:
        content: The bytes of the file. Files of other formats pass.

    Raises:
        UnusableError: The file states too many boxes or packets, or its header is compressed.
    """
    file_bytes = content.seek(0, os.SEEK_END)
    tracks = [_Track()]
    fragment_packets = 0
    for box in boxes(content, file_bytes):
        _, first, second = box.fields
        match box.kind:
            case b"cmov":
                raise UnusableError("its MP4 header is compressed, which is not supported: convert the file")
            case b"trak":
                tracks.append(_Track())
            case b"trun":
                fragment_packets += first
                _check_size(fragment_packets, file_bytes)
            case b"stsz":
                packet_bytes = first or 4  # one size for all packets, or a table entry of 4 bytes for each packet
                _check_size(second * packet_bytes, file_bytes)
            case b"stz2":
                _check_size(second * (first & 0xFF) // 8, file_bytes)
        tracks[-1].add(box, content)
    entries = fragment_packets + sum(track.entries() for track in tracks)
    if entries > MAX_PACKETS:
        raise UnusableError(f"states {entries} packets: must be at most {MAX_PACKETS}")


def _check_size(stated: int, file_bytes: int) -> None:
    if stated > file_bytes:
        raise UnusableError(f"states packets of {stated} bytes or more, in a file of {file_bytes} bytes")


def boxes(content: BinaryIO, file_bytes: int) -> Iterator[Box]:
    """Yield the boxes of an MP4 file in the order in which FFmpeg reads them.

    Args:
        content: The bytes of the file.
        file_bytes: Size of the file.

    Raises:
        UnusableError: The file has more than MAX_BOXES boxes.
    """
    ranges = [(0, file_bytes)]
    count = 0
    while ranges:
        start, end = ranges.pop()
        content.seek(start)
        head = content.read(28).ljust(28, b"\0")
        size, kind = struct.unpack_from(">I4s", head)
        header = 16 if size == 1 else 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", head, 8)
            stop = start + size
        else:
            stop = start + size if size else end  # size 0: up to the end
        if stop < start + header or start + header > end:
            continue
        if (count := count + 1) > MAX_BOXES:
            raise UnusableError(f"more than {MAX_BOXES} MP4 boxes")
        if stop < end:
            ranges.append((stop, end))
        stop = min(stop, end)
        yield Box(kind, start + header, stop, struct.unpack_from(">3I", head, header))
        if kind in MP4_CONTAINERS or (kind in MP4_DISGUISES and head[header + 4 : header + 8] in {b"mvhd", b"cmov"}):
            ranges.append((start + header, stop))
