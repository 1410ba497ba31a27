"""Chunks of WAV, RF64, W64, AIFF, CAF and AU files: the data chunk, and what follows it."""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from audiodiff_core.audio.tags import TAG_HEAD_BYTES, tag_size

BLOCK_BYTES = 1 << 20
MAX_CHUNKS = 10_000
UNKNOWN_SIZES = {"<I": (1 << 32) - 1, ">I": (1 << 32) - 1, ">q": -1}
"""Sizes that mean "up to the end of the file", by the `struct` format of the size field."""
FILE_STARTS = frozenset({b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"caff", b"riff", b".snd", b"fLaC", b"OggS"})
AUDIO_CHUNKS = frozenset({b"data", b"SSND", b"BODY"}) | FILE_STARTS
"""Identifiers of chunks that hold samples, and the first bytes of audio files."""
ZEROS = bytes(BLOCK_BYTES)
TRAILERS = frozenset({b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"_PMX", b"axml", b"cue ", b"smpl", b"APPL"})
"""Identifiers of metadata chunks that may follow the data chunk, even if they are truncated."""


@dataclass(frozen=True)
class ChunkLayout:
    """Layout of the chunks of a file format. The head of a chunk consists of its identifier and its size."""

    first: int
    """Position of the first chunk in bytes."""
    size: str
    """`struct` format of the size field."""
    data: bytes
    """First four bytes of the identifier of the data chunk, which holds the samples."""
    name_bytes: int = 4
    """Length of an identifier."""
    alignment: int = 2
    """Multiple of bytes at which chunks begin."""
    data_head_bytes: int = 0
    """Number of bytes in the data chunk before the samples."""
    counts_head: bool = False
    """True if the size of a chunk includes its head."""

    @property
    def head_bytes(self) -> int:
        """Size of the head of a chunk."""
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
    """Size of the data chunk of a file, and properties of the bytes after the chunk."""

    stated: int
    """Size of the samples in bytes, as stated in the head of the chunk."""
    after: int
    """Number of bytes after the chunk that belong to no chunk, tag or padding."""
    is_followed_by_file: bool
    """True if a second data chunk or another file follows."""


def data_chunk(content: BinaryIO) -> DataChunk | None:
    """Read the size of the data chunk of a WAV, RF64, W64, AIFF, CAF or AU file.

    Returns:
        The data chunk, or None for a file of another format or of unknown data size.
    """
    length = content.seek(0, os.SEEK_END)
    content.seek(0)
    magic, *au_sizes = struct.unpack(">4s2I", content.read(12).ljust(12, b"\0"))
    if magic == b".snd":
        start, stated = au_sizes
        return _data_chunk(content, start + stated, length, None, stated)
    layout = LAYOUTS.get(magic)
    if layout is None:
        return None
    position, rf64_size = layout.first, None
    for _ in range(MAX_CHUNKS):
        name, size = _chunk(content, position, layout)
        start = position + layout.head_bytes
        if name == b"ds64":
            _, rf64_size = struct.unpack("<2Q", content.read(16).ljust(16, b"\0"))
        if name == layout.data:
            if rf64_size is not None and size == UNKNOWN_SIZES["<I"]:
                size = rf64_size
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
    """Return the first four bytes of the identifier and the content size of the chunk at `position`."""
    content.seek(position)
    head = content.read(layout.head_bytes).ljust(layout.head_bytes, b"\0")
    size = struct.unpack(layout.size, head[layout.name_bytes :])[0]
    return head[:4], size - (layout.head_bytes if layout.counts_head else 0)


def _unknown_bytes(content: BinaryIO, position: int, length: int, layout: ChunkLayout | None) -> int:
    """Skip chunks, tags and padding from `position` on, and return the number of bytes that remain."""
    for _ in range(MAX_CHUNKS):
        start = _skip_zeros(content, position)
        if start >= length:
            return 0
        size = _trailer_size(content, start, length, layout)
        if not size and start % 2:  # the padding byte after a chunk of odd size can have any value
            start += 1
            size = _trailer_size(content, start, length, layout)
        if not size:
            break
        position = start + size
    return length - position


def _trailer_size(content: BinaryIO, position: int, length: int, layout: ChunkLayout | None) -> int:
    """Return the size of the tag or the metadata chunk at `position`, 0 if neither begins there."""
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
