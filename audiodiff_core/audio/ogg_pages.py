"""Pages of Ogg files (RFC 3533)."""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from audiodiff_core.audio.formats import UnusableError
from audiodiff_core.audio.tags import TAG_HEAD_BYTES, tag_size

CAPTURE = b"OggS"
FIRST_PAGE, LAST_PAGE = 2, 4  # flags
NO_GRANULE = -1  # the granule position of a page on which no packet ends

PAGE_HEADER = struct.Struct("<4sBBqIIIB")
_FLAGS_OFFSET, _CHECKSUM_OFFSET = 5, 22
_HEAD_BYTES = 64
_SCAN_BYTES = 65_536
_LYRICS = b"LYRICSBEGIN"
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True, slots=True)
class Page:
    """Header fields, position and first bytes of an Ogg page."""

    start: int
    """Position in bytes."""
    end: int
    """End in bytes."""
    flags: int
    granule: int
    """Granule position, or NO_GRANULE."""
    serial: int
    """Serial number of the stream."""
    number: int
    """Sequence number of the page in its stream."""
    packets: int
    """Number of packets that end on this page."""
    head: bytes
    """First bytes of the body, at most 64."""


@dataclass(frozen=True, slots=True)
class Junk:
    """Bytes outside pages."""

    start: int
    """Position in bytes."""
    end: int
    """End in bytes."""
    is_padding: bool
    """True for zeros and tags, which programs append to complete files."""


def pages(content: BinaryIO) -> Iterator[Page | Junk]:
    """Yield the pages of an Ogg file, and the bytes between pages.

    Raises:
        UnusableError: A page is cut off, or its checksum is wrong.
    """
    size = content.seek(0, io.SEEK_END)
    start = 0
    while start < size:
        content.seek(start)
        header = content.read(PAGE_HEADER.size)
        if not header.startswith(CAPTURE):
            junk = _junk(content, start, size)
            yield junk
            start = junk.end
            continue
        lacing = content.read(header[-1]) if len(header) == PAGE_HEADER.size else b""
        body = content.read(sum(lacing))
        end = start + len(header) + len(lacing) + len(body)
        if len(header) < PAGE_HEADER.size or len(lacing) < header[-1] or len(body) < sum(lacing):
            rest = (header + lacing + body)[len(CAPTURE) :]
            if CAPTURE in rest:
                raise UnusableError(f"corrupt: the Ogg page at byte {start} is damaged")
            raise UnusableError("truncated: ends inside an Ogg page")
        _, version, flags, granule, serial, number, checksum, _ = PAGE_HEADER.unpack(header)
        if version != 0 or checksum != page_checksum(header + lacing + body):
            raise UnusableError(f"corrupt: the Ogg page at byte {start} is damaged")
        packets = sum(length < 255 for length in lacing)
        yield Page(start, end, flags, granule, serial, number, packets, body[:_HEAD_BYTES])
        start = end


def as_last_page(content: BinaryIO, page: Page) -> bytes:
    """Return the bytes of `page`, marked as the last page of its stream."""
    content.seek(page.start)
    marked = bytearray(content.read(page.end - page.start))
    marked[_FLAGS_OFFSET] |= LAST_PAGE
    marked[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 4] = page_checksum(bytes(marked)).to_bytes(4, "little")
    return bytes(marked)


def _junk(content: BinaryIO, start: int, size: int) -> Junk:
    """Return the bytes from `start` to the next page, or to the end of a file of `size` bytes."""
    content.seek(start)
    chunk = content.read(_SCAN_BYTES)
    if len(chunk) < len(CAPTURE) and CAPTURE.startswith(chunk):
        raise UnusableError("truncated: ends inside an Ogg page")
    is_tag = bool(tag_size(chunk[:TAG_HEAD_BYTES])) or chunk.startswith(_LYRICS)
    is_blank = True
    position = start
    while chunk:
        capture = chunk.find(CAPTURE)
        is_blank = is_blank and not chunk[: capture if capture >= 0 else None].strip(b"\0")
        if capture >= 0:
            return Junk(start, position + capture, is_tag or is_blank)
        position += max(1, len(chunk) - len(CAPTURE) + 1)
        content.seek(position)
        chunk = content.read(_SCAN_BYTES)
    return Junk(start, size, is_tag or is_blank)


def page_checksum(page: bytes) -> int:
    """Return the CRC of a page (RFC 3533, section 6)."""
    # zlib uses the same polynomial, but reverses the bits, starts from all ones, and inverts the result. The code below
    # undoes these differences.
    blank = page[:_CHECKSUM_OFFSET] + bytes(4) + page[_CHECKSUM_OFFSET + 4 :]
    reverse = zlib.crc32(blank.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(reverse.to_bytes(4, "little").translate(_REVERSED_BITS), "big")
