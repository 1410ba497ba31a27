"""MPEG audio streams (such as MP3) in a file, located by their frame headers.

The first frame of a stream may hold a header tag instead of audio. A header tag states how many frames follow.

Layouts: ISO/IEC 11172-3 and 13818-3 for frames; Xing (Xing, Info) and Fraunhofer (VBRI) for header tags.
"""

import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from audiodiff_core.audio.formats import UnusableError
from audiodiff_core.audio.tags import TAG_HEAD_BYTES, tag_size

BLOCK_BYTES = 1 << 20
MAX_SYNCS = 100_000
"""Maximum number of positions outside frames that are checked for a frame header."""
MIN_RUN_FRAMES = 3
"""Minimum number of successive frames at the start of a stream.

The data of pictures in tags contains single frame headers by chance.
"""

XING_TAGS = (b"Xing", b"Info")
VBRI_TAG, VBRI_OFFSET = b"VBRI", 36

_SYNC = re.compile(rb"\xff[\xe2-\xe7\xf2-\xff][\x10-\xeb]")
_BIT_RATES_KBPS = {  # keys: layer, and True for MPEG 1 or False for MPEG 2 and 2.5
    (1, True): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (2, True): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, True): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (1, False): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, False): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (3, False): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class FrameKind(NamedTuple):
    """Header fields that are equal in all frames of a stream."""

    version: int
    """Version bits: 3 for MPEG 1, 2 for MPEG 2, 0 for MPEG 2.5."""
    layer: int
    """Layer: 1, 2 or 3."""
    rate: int
    """Sample rate in Hz."""
    mono: bool

    @property
    def samples(self) -> int:
        """Number of samples per channel in a frame."""
        if self.layer == 1:
            return 384
        return 1_152 if self.layer == 2 or self.version == 3 else 576

    @property
    def xing_offset(self) -> int:
        """Position of a Xing tag in its frame, after the header and the side information."""
        if self.version == 3:
            return 21 if self.mono else 36
        return 13 if self.mono else 21


@dataclass
class MpegStream:
    """Successive frames of one kind, written by one encoder."""

    kind: FrameKind
    first_header: bytes
    """The four bytes of the first frame header."""
    last_frame: int
    """Position of the last frame."""
    tag: bytes = b""
    """The frame with the Xing or VBRI tag, empty if the stream begins without a tag."""
    frames: int = 0
    """Number of frames with audio."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    """Byte ranges of the frames with audio."""

    @property
    def samples(self) -> int:
        """Number of samples per channel."""
        return self.frames * self.kind.samples

    @property
    def stated_frames(self) -> int | None:
        """Number of frames that the Xing tag states, None without such a tag."""
        offset = self.kind.xing_offset
        if self.tag[offset : offset + 4] not in XING_TAGS or not self.tag[offset + 7] & 1:
            return None
        return int.from_bytes(self.tag[offset + 8 : offset + 12], "big")

    @property
    def end(self) -> int:
        """End of the last frame with audio."""
        return self.spans[-1][1] if self.spans else 0

    def append(self, start: int, end: int, frames: int, last_frame: int) -> None:
        """Append successive frames.

        Args:
            start: Position of the first frame in bytes.
            end: End of the last frame in bytes.
            frames: Number of frames.
            last_frame: Position of the last frame in bytes.
        """
        self.frames += frames
        self.last_frame = last_frame
        if self.spans and self.spans[-1][1] == start:
            self.spans[-1] = (self.spans[-1][0], end)
        else:
            self.spans.append((start, end))

    def drop_last_frame(self) -> None:
        """Remove the last frame."""
        self.frames -= 1
        start, _ = self.spans.pop()
        if start < self.last_frame:
            self.spans.append((start, self.last_frame))


def mpeg_streams(content: BinaryIO) -> list[MpegStream]:
    """List the MPEG audio streams in a file. Tags and other bytes between frames are skipped.

    A new stream begins at a Xing or VBRI tag, and at a frame of a different kind. Free-format frames, whose headers
    state no size, are not recognized.

    Raises:
        UnusableError: The stream is damaged in more than MAX_SYNCS places.
    """
    window = _Window(content)
    streams: list[MpegStream] = []
    position = _next_run(window, 0, earliest=0)
    while position is not None:
        frame = window.frame(position)
        previous = streams[-1] if streams else None
        if frame is None or (previous and frame[0] != previous.kind and not _is_run(window, position)):
            position = _next_run(window, position, previous.last_frame + 4 if previous else position)
            if previous and position is not None and position < previous.end:
                previous.drop_last_frame()
            continue
        kind, size = frame
        tag = window.header_tag(position, size, kind)
        if tag or not previous or kind != previous.kind:
            streams.append(MpegStream(kind, window.read(position, 4), position, tag))
        position = position + size if tag else window.append_run(position, streams[-1])
    return streams


def frame_size(header: bytes) -> int:
    """Return the size in bytes of the frame with this four-byte header, 0 if the header is invalid."""
    _, size = _frame(header) or (None, 0)
    return size


class _Window:
    """Reader for a few bytes at any position of a file. It buffers one block of the file."""

    def __init__(self, content: BinaryIO) -> None:
        self.length = content.seek(0, os.SEEK_END)
        self._content = content
        self._start = 0
        self._block = b""
        self._syncs = 0

    def read(self, position: int, count: int) -> bytes:
        """Return `count` bytes at `position`, fewer at the end of the file."""
        offset = position - self._start
        end = min(position + count, self.length) - self._start
        if not 0 <= offset <= end <= len(self._block):
            self._content.seek(position)
            self._start, self._block, offset = position, self._content.read(BLOCK_BYTES), 0
        return self._block[offset : offset + count]

    def sync(self, position: int) -> int | None:
        """Return the first position from `position` on at which a frame header may begin."""
        while position + 4 <= self.length:
            self.read(position, 4)
            if match := _SYNC.search(self._block, position - self._start):
                self._syncs += 1
                if self._syncs > MAX_SYNCS:
                    raise UnusableError(f"corrupt: its MPEG audio is broken in more than {MAX_SYNCS} places")
                return self._start + match.start()
            position = self._start + len(self._block) - 2
        return None

    def frame(self, position: int) -> tuple[FrameKind, int] | None:
        """Return the kind and size in bytes of a complete frame at `position`, or None without a frame."""
        frame = _frame(self.read(position, 4))
        return frame if frame and position + frame[1] <= self.length else None

    def header_tag(self, position: int, size: int, kind: FrameKind) -> bytes:
        """Return the frame at `position` if it holds a Xing or VBRI tag, or else empty bytes."""
        frame = self.read(position, size)
        is_xing = frame[kind.xing_offset : kind.xing_offset + 4] in XING_TAGS
        is_vbri = frame[VBRI_OFFSET : VBRI_OFFSET + 4] == VBRI_TAG
        return frame if kind.layer == 3 and (is_xing or is_vbri) else b""

    def append_run(self, start: int, stream: MpegStream) -> int:
        """Append the frame at `start`, and the next frames of its kind in the block, to `stream`.

        Returns the end of the last frame.
        """
        position = start - self._start + frame_size(self.read(start, 4))
        last, frames = start - self._start, 1
        kind, block, xing = stream.kind, self._block, stream.kind.xing_offset
        while frame := _frame(block[position : position + 4]):
            end = position + frame[1]
            at_xing = block[position + xing : position + xing + 4]
            at_vbri = block[position + VBRI_OFFSET : position + VBRI_OFFSET + 4]
            if frame[0] != kind or end > len(block) or at_xing in XING_TAGS or at_vbri == VBRI_TAG:
                break
            last, position, frames = position, end, frames + 1
        stream.append(start, self._start + position, frames, self._start + last)
        return self._start + position


@lru_cache(maxsize=4_096)
def _frame(header: bytes) -> tuple[FrameKind, int] | None:
    """Return the kind and size in bytes of the frame with this header, or None for an invalid header."""
    if len(header) < 4 or not _SYNC.match(header):
        return None
    version, layer, padding = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3), header[2] >> 1 & 1
    bit_rate_index, rate_index = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 4 or bit_rate_index in (0, 15) or rate_index == 3:
        return None
    rate = (44_100, 48_000, 32_000)[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    kind = FrameKind(version, layer, rate, header[3] >> 6 == 3)
    bits_per_second = 1_000 * _BIT_RATES_KBPS[layer, version == 3][bit_rate_index - 1]
    if layer == 1:
        return kind, (12 * bits_per_second // rate + padding) * 4
    return kind, kind.samples // 8 * bits_per_second // rate + padding


def _next_run(window: _Window, position: int, earliest: int) -> int | None:
    """Return the position of the next run of frames after tags and other bytes.

    The frame before `position` may be cut off, so that a run begins inside this frame. A run between `earliest` and
    `position` is therefore preferred.
    """
    candidate = window.sync(earliest)
    while candidate is not None and candidate < position:
        if _is_run(window, candidate):
            return candidate
        candidate = window.sync(candidate + 1)
    while (end := _tag_end(window, position)) is not None:
        position = end
    candidate = window.sync(position)
    while candidate is not None and not _is_run(window, candidate):
        candidate = window.sync(candidate + 1)
    return candidate


def _is_run(window: _Window, position: int) -> bool:
    """Return True if MIN_RUN_FRAMES successive frames of one kind begin at `position`.

    Before a tag or the end of the file, fewer frames are enough. A single frame with a header tag is also enough.
    """
    kind = None
    for count in range(MIN_RUN_FRAMES):
        frame = window.frame(position)
        if frame is None or frame[0] != (kind or frame[0]):
            return count > 0 and (position == window.length or _tag_end(window, position) is not None)
        kind, size = frame
        if count == 0 and window.header_tag(position, size, kind):
            return True
        position += size
    return True


def _tag_end(window: _Window, position: int) -> int | None:
    """Return the end of the tag at `position`, or None if there is no complete tag."""
    size = tag_size(window.read(position, TAG_HEAD_BYTES))
    return position + size if 0 < size <= window.length - position else None
