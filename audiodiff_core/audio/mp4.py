"""Boxes of MP4 files: bounds on what FFmpeg would take memory for.

FFmpeg keeps an index entry of 24 to 35 bytes for each packet that a file states, whether or not the file holds it.
The walk enters the boxes that FFmpeg enters, also those in disguise, and counts the entries as FFmpeg does.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from audiodiff_core.audio.formats import UnusableError

MAX_BOXES = 1 << 20
"""Boxes in a file: 40 hours in fragments of a second."""

MAX_PACKETS = 1 << 23
"""Index entries of all tracks: 49 hours of AAC at 48 kHz, 300 MB in FFmpeg."""

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
"""Boxes that FFmpeg reads as `moov` if their content begins like that of one."""

PCM_FRAMES_PER_ENTRY = 1_024


@dataclass(frozen=True)
class Box:
    kind: bytes
    content: int
    """Position after the header."""
    stop: int
    fields: tuple[int, int, int]
    """The first 32-bit numbers of the content."""


@dataclass
class _Track:
    """Counts that the tables of a track state."""

    packets: int = 0
    edits: int = 1
    chunks: int = 0
    frames_in_chunks: int = 0
    is_audio: bool = False
    one_frame_each: bool = True

    def add(self, box: Box, content: BinaryIO) -> None:
        _, first, second = box.fields
        match box.kind:
            case b"stsz" | b"stz2":
                self.packets = max(self.packets, second)
            case b"elst":
                self.edits = max(self.edits, first)
            case b"hdlr":
                self.is_audio = self.is_audio or second == int.from_bytes(b"soun", "big")
                self.one_frame_each = self.one_frame_each and second != int.from_bytes(b"vide", "big")
            case b"stts":
                content.seek(box.content + 12)
                self.one_frame_each = self.one_frame_each and first == 1 and content.read(4) == b"\0\0\0\1"
            case b"stco" | b"co64":
                self.chunks = max(self.chunks, min(first, box.stop - box.content))
            case b"stsc":
                content.seek(box.content + 8)
                table = np.frombuffer(content.read(12 * min(first, (box.stop - box.content - 8) // 12)), ">u4").reshape(
                    -1, 3
                )
                self.frames_in_chunks = max(self.frames_in_chunks, int(table[:, 1].max(initial=0)))

    def entries(self) -> int:
        """Count FFmpeg's index entries: one for a block of PCM frames in a chunk or for a packet, in each edit."""
        if self.is_audio and self.one_frame_each:
            return self.chunks * (1 + self.frames_in_chunks // PCM_FRAMES_PER_ENTRY) * self.edits
        return self.packets * self.edits


def check_sample_tables(content: BinaryIO) -> None:
    """Raise UnusableError for an MP4 file with too many boxes or packets, or with more packets than it has room for."""
    room = content.seek(0, os.SEEK_END)
    tracks = [_Track()]
    in_fragments = 0
    for box in boxes(content, room):
        _, first, second = box.fields
        match box.kind:
            case b"cmov":
                raise UnusableError("its MP4 header is compressed, which is not read: convert the file")
            case b"trak":
                tracks.append(_Track())
            case b"trun":
                in_fragments += first
                _require_room(in_fragments, room)
            case b"stsz":
                _require_room(
                    second * (first or 4), room
                )  # `first` bytes for each packet, or a line in the table of sizes
            case b"stz2":
                _require_room(second * (first & 0xFF) // 8, room)
        tracks[-1].add(box, content)
    entries = in_fragments + sum(track.entries() for track in tracks)
    if entries > MAX_PACKETS:
        raise UnusableError(f"states {entries} packets, at most {MAX_PACKETS} are read")


def _require_room(claimed: int, room: int) -> None:
    if claimed > room:
        raise UnusableError(f"states packets of {claimed} bytes or more, in a file of {room}")


def boxes(content: BinaryIO, room: int) -> Iterator[Box]:
    """Walk through the boxes in the order in which FFmpeg reads them."""
    parts = [(0, room)]
    count = 0
    while parts:
        start, end = parts.pop()
        content.seek(start)
        head = content.read(28).ljust(28, b"\0")
        size, kind = struct.unpack_from(">I4s", head)
        header = 16 if size == 1 else 8
        stop = (
            end if size == 0 else start + (struct.unpack_from(">Q", head, 8)[0] if size == 1 else size)
        )  # 0: to the end
        if stop < start + header or start + header > end:
            continue
        if (count := count + 1) > MAX_BOXES:
            raise UnusableError(f"more than {MAX_BOXES} MP4 boxes")
        if stop < end:
            parts.append((stop, end))
        stop = min(stop, end)
        yield Box(kind, start + header, stop, struct.unpack_from(">3I", head, header))
        if kind in MP4_CONTAINERS or (kind in MP4_DISGUISES and head[header + 4 : header + 8] in {b"mvhd", b"cmov"}):
            parts.append((start + header, stop))
