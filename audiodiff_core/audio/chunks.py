"""Chunks of WAV, RF64, W64, AIFF, CAF and AU files: the data chunk, and what follows it."""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from audiodiff_core.audio.tags import TAG_HEAD_BYTES, tag_size

BLOCK_BYTES = 1 << 20
MAX_CHUNKS = 10_000
UNKNOWN_SIZES = {"<I": (1 << 32) - 1, ">I": (1 << 32) - 1, ">q": -1}
"""By the format of a size: its value for data up to the end of the file."""
FILE_STARTS = frozenset({b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"caff", b"riff", b".snd", b"fLaC", b"OggS"})
AUDIO_CHUNKS = frozenset({b"data", b"SSND", b"BODY"}) | FILE_STARTS
"""Chunks that hold samples, and the first bytes of other files."""
ZEROS = bytes(BLOCK_BYTES)
TRAILERS = frozenset({b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"_PMX", b"axml", b"cue ", b"smpl", b"APPL"})
"""Chunks without samples that follow the data, known even where they are cut."""


@dataclass(frozen=True)
class ChunkLayout:
    """Layout of the chunks of a format."""

    first: int
    """Position of the first chunk."""
    size: str
    """Format of a chunk's size."""
    data: bytes
    """Identifier of the chunk of samples."""
    name_bytes: int = 4
    alignment: int = 2
    data_head_bytes: int = 0
    """Bytes in the data chunk before its samples."""
    counts_head: bool = False
    """A chunk's size includes its identifier and its size."""

    @property
    def head_bytes(self) -> int:
        return self.name_bytes + struct.calcsize(self.size)


LAYOUTS = {
    b"RIFF": ChunkLayout(12, "<I", b"data"),
    b"RIFX": ChunkLayout(12, ">I", b"data"),
    b"RF64": ChunkLayout(12, "<I", b"data"),
    b"BW64": ChunkLayout(12, "<I", b"data"),
    b"FORM": ChunkLayout(12, ">I", b"SSND", data_head_bytes=8),
    b"caff": ChunkLayout(8, ">q", b"data", alignment=1, data_head_bytes=4),
    b"riff": ChunkLayout(40, "<Q", b"data", name_bytes=16, alignment=8, counts_head=True),
}


@dataclass(frozen=True)
class DataChunk:
    """The samples of a file as its header states them."""

    stated: int
    """Size in bytes."""
    after: int
    """Bytes after the end of the chunk that are no other chunk, no tag and no padding."""

    is_followed_by_file: bool
    """A second data chunk or another file follows."""


def data_chunk(content: BinaryIO) -> DataChunk | None:
    """The data chunk of `content`, if its format is made of chunks and the size of its data is known."""
    length = content.seek(0, os.SEEK_END)
    content.seek(0)
    magic, *au_sizes = struct.unpack(">4s2I", content.read(12).ljust(12, b"\0"))
    if magic == b".snd":
        start, stated = au_sizes
        return _data_chunk(content, start + stated, length, None, stated)
    layout = LAYOUTS.get(magic)
    if layout is None:
        return None
    position, size_of_rf64 = layout.first, None
    for _ in range(MAX_CHUNKS):
        name, size = _chunk(content, position, layout)
        start = position + layout.head_bytes
        if name == b"ds64":
            _, size_of_rf64 = struct.unpack("<2Q", content.read(16).ljust(16, b"\0"))
        if name == layout.data:
            if size_of_rf64 is not None and size == UNKNOWN_SIZES["<I"]:
                size = size_of_rf64
            if size == UNKNOWN_SIZES.get(layout.size):
                return None
            return _data_chunk(content, start + size, length, layout, size - layout.data_head_bytes)
        position = start + size + -(start + size) % layout.alignment
        if size < 0 or position + layout.head_bytes > length:
            return None
    return None


def _data_chunk(content: BinaryIO, end: int, length: int, layout: ChunkLayout | None, stated: int) -> DataChunk:
    after = _unknown_bytes(content, end, length, layout)
    content.seek(_skip_zeros(content, length - after))
    return DataChunk(stated, after, content.read(4) in AUDIO_CHUNKS)


def _chunk(content: BinaryIO, position: int, layout: ChunkLayout) -> tuple[bytes, int]:
    """The first four bytes of the identifier, and the size of what follows the head, of the chunk at `position`."""
    content.seek(position)
    head = content.read(layout.head_bytes).ljust(layout.head_bytes, b"\0")
    size = struct.unpack(layout.size, head[layout.name_bytes :])[0]
    return head[:4], size - (layout.head_bytes if layout.counts_head else 0)


def _unknown_bytes(content: BinaryIO, position: int, length: int, layout: ChunkLayout | None) -> int:
    """The number of bytes from `position` to the end of the file, without chunks, tags and padding at its start."""
    for _ in range(MAX_CHUNKS):
        start = _skip_zeros(content, position)
        if start >= length:
            return 0
        size = _trailer_size(content, start, length, layout)
        if not size and start % 2:  # an odd chunk is followed by a byte of any value
            start += 1
            size = _trailer_size(content, start, length, layout)
        if not size:
            break
        position = start + size
    return length - position


def _trailer_size(content: BinaryIO, position: int, length: int, layout: ChunkLayout | None) -> int:
    """The size of the tag or of the whole chunk at `position`, 0 if these bytes are neither or may hold samples."""
    content.seek(position)
    if size := tag_size(content.read(TAG_HEAD_BYTES)):
        return size
    if layout is None:
        return 0
    name, size = _chunk(content, position, layout)
    is_name = all(0x20 <= byte < 0x7F for byte in name) and name not in AUDIO_CHUNKS
    fits = 0 <= size <= length - position - layout.head_bytes
    return layout.head_bytes + size if is_name and (fits or name in TRAILERS) else 0


def _skip_zeros(content: BinaryIO, position: int) -> int:
    content.seek(position)
    while block := content.read(BLOCK_BYTES):
        if block != ZEROS[: len(block)]:
            return position + len(block) - len(block.lstrip(b"\0"))
        position += len(block)
    return position
