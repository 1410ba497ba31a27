"""Stated duration of Matroska and WebM files, and detection of a second file (RFC 9559)."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from audiodiff_core.audio.formats import UnusableError

EBML_HEADER = b"\x1a\x45\xdf\xa3"
SEGMENT = b"\x18\x53\x80\x67"
INFO = b"\x15\x49\xa9\x66"
CLUSTER = b"\x1f\x43\xb6\x75"
TIMESTAMP_SCALE = b"\x2a\xd7\xb1"
DURATION = b"\x44\x89"

MAX_ELEMENTS = 1 << 20
"""Maximum number of elements visited, enough for five hours of live recording with unknown cluster sizes."""
DEFAULT_SCALE_NS = 1_000_000
MAX_STATED_S = 1e9
"""Maximum plausible duration. Longer durations are ignored."""
HEAD_BYTES = 12
"""Maximum size of the head of an element, which is its name and its size."""


def is_matroska(content: BinaryIO) -> bool:
    """Return True if `content` begins like a Matroska or WebM file."""
    content.seek(0)
    return content.read(len(EBML_HEADER)) == EBML_HEADER


def stated_seconds(content: BinaryIO) -> float | None:
    """Read the duration in the header of a Matroska file.

    Returns:
        The duration in seconds, or None if the header states none.

    Raises:
        UnusableError: A second Matroska file follows.
    """
    duration, scale_ns = 0.0, DEFAULT_SCALE_NS
    for name, start, size in _elements(content):
        if name == EBML_HEADER and start > HEAD_BYTES:
            raise UnusableError("holds several Matroska or WebM files; split the file")
        content.seek(start)
        if name == TIMESTAMP_SCALE and size is not None and size <= 8:
            scale_ns = int.from_bytes(content.read(size), "big")
        if name == DURATION and size in (4, 8):
            (duration,) = struct.unpack(">f" if size == 4 else ">d", content.read(size).ljust(size, b"\0"))
    seconds = duration * scale_ns / 1e9
    return seconds if 0 < seconds < MAX_STATED_S else None


def _elements(content: BinaryIO) -> Iterator[tuple[bytes, int, int | None]]:
    """Yield the name, content position and size of each element visited. An unknown size is None.

    If the size of the segment is known, the walk continues from the first cluster to the end of the segment. Otherwise
    it skips each cluster of known size, and visits the elements of each cluster of unknown size.
    """
    position, segment_end = 0, None
    for _ in range(MAX_ELEMENTS):
        content.seek(position)
        name, size, head_bytes = _head(content.read(HEAD_BYTES))
        if not name:
            return
        start = position + head_bytes
        yield name, start, size
        if name == SEGMENT:
            segment_end = None if size is None else start + size
            position = start
        elif name == CLUSTER and segment_end is not None:
            position = segment_end
        elif name == INFO or (name == CLUSTER and size is None):
            position = start
        elif size is None:
            return
        else:
            position = start + size


def _head(head: bytes) -> tuple[bytes, int | None, int]:
    """Return the name, size and head size of an element. The name is empty if `head` is invalid."""
    name_bytes = 9 - head[0].bit_length() if head else 9
    rest = head[name_bytes:]
    size_bytes = 9 - rest[0].bit_length() if rest else 9
    if name_bytes > 4 or size_bytes > 8 or len(rest) < size_bytes:
        return b"", None, 0
    unknown = (1 << 7 * size_bytes) - 1
    size = int.from_bytes(rest[:size_bytes], "big") & unknown
    return head[:name_bytes], None if size == unknown else size, name_bytes + size_bytes
