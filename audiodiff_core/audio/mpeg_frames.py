"""The MPEG audio streams (MP3) in a file, by their frame headers.

Layouts: ISO/IEC 11172-3 and 13818-3 for frames; Xing's and Fraunhofer's header tags, a first frame without audio
that states how many frames follow.
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
"""Positions outside of the frames that are compared with frame headers."""
FRAMES_IN_SEQUENCE = 3
"""Frames in sequence that mark the begin of a stream after other bytes. Pictures hold single headers by chance."""

XING_TAGS = (b"Xing", b"Info")
VBRI_TAG, VBRI_OFFSET = b"VBRI", 36

_SYNC = re.compile(rb"\xff[\xe2-\xe7\xf2-\xff][\x10-\xeb]")
_BIT_RATES_KBPS = {  # by layer, of MPEG 1 and of MPEG 2 and 2.5
    (1, True): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (2, True): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, True): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (1, False): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, False): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (3, False): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class FrameKind(NamedTuple):
    """The header fields that are equal in all frames of a stream."""

    version: int
    """MPEG version by its two bits: 3 for MPEG 1, 2 for MPEG 2, 0 for MPEG 2.5."""
    layer: int
    rate: int
    mono: bool

    @property
    def samples(self) -> int:
        """Samples in a frame, of each channel."""
        if self.layer == 1:
            return 384
        return 1_152 if self.layer == 2 or self.version == 3 else 576

    @property
    def xing_offset(self) -> int:
        """Position of a Xing tag in its frame: after the header and the side information."""
        if self.version == 3:
            return 21 if self.mono else 36
        return 13 if self.mono else 21


@dataclass
class MpegStream:
    """Consecutive frames of one kind, from one encoder."""

    kind: FrameKind
    first_header: bytes
    last_frame: int
    """Position of the last frame."""
    tag: bytes = b""
    """The frame with the Xing or VBRI tag, if the stream begins with one."""
    frames: int = 0
    """The number of frames with audio."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    """Byte ranges of the frames with audio."""

    @property
    def samples(self) -> int:
        return self.frames * self.kind.samples

    @property
    def stated_frames(self) -> int | None:
        """The number of frames that a Xing tag states."""
        offset = self.kind.xing_offset
        if self.tag[offset : offset + 4] not in XING_TAGS or not self.tag[offset + 7] & 1:
            return None
        return int.from_bytes(self.tag[offset + 8 : offset + 12], "big")

    @property
    def end(self) -> int:
        return self.spans[-1][1] if self.spans else 0

    def append(self, start: int, end: int, frames: int, last_frame: int) -> None:
        self.frames += frames
        self.last_frame = last_frame
        if self.spans and self.spans[-1][1] == start:
            self.spans[-1] = (self.spans[-1][0], end)
        else:
            self.spans.append((start, end))

    def drop_last_frame(self) -> None:
        self.frames -= 1
        start, _ = self.spans.pop()
        if start < self.last_frame:
            self.spans.append((start, self.last_frame))


def mpeg_streams(content: BinaryIO) -> list[MpegStream]:
    """The streams in `content`, in sequence. Tags and other bytes between frames are skipped.

    A stream begins at a Xing or VBRI tag and where the kind of the frames changes. Frames of the free format, whose
    headers state no size, are not recognised.
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
        position = position + size if tag else window.take(position, streams[-1])
    return streams


def frame_size(header: bytes) -> int:
    """Size in bytes of the frame with these first four bytes, 0 if they are no header."""
    _, size = _frame(header) or (None, 0)
    return size


class _Window:
    """Random reads of a few bytes from blocks of a file."""

    def __init__(self, content: BinaryIO) -> None:
        self.length = content.seek(0, os.SEEK_END)
        self._content = content
        self._start = 0
        self._block = b""
        self._syncs = 0

    def read(self, position: int, count: int) -> bytes:
        """Up to `count` bytes at `position`, fewer at the end of the file."""
        offset = position - self._start
        past = min(position + count, self.length) - self._start
        if not 0 <= offset <= past <= len(self._block):
            self._content.seek(position)
            self._start, self._block, offset = position, self._content.read(BLOCK_BYTES), 0
        return self._block[offset : offset + count]

    def sync(self, position: int) -> int | None:
        """The position of the next three bytes that can begin a frame, at `position` or after it."""
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
        """Kind and size in bytes of the frame at `position`, if the file holds all of it."""
        frame = _frame(self.read(position, 4))
        return frame if frame and position + frame[1] <= self.length else None

    def header_tag(self, position: int, size: int, kind: FrameKind) -> bytes:
        """The frame at `position`, if it holds a Xing or VBRI tag."""
        frame = self.read(position, size)
        is_xing = frame[kind.xing_offset : kind.xing_offset + 4] in XING_TAGS
        is_vbri = frame[VBRI_OFFSET : VBRI_OFFSET + 4] == VBRI_TAG
        return frame if kind.layer == 3 and (is_xing or is_vbri) else b""

    def take(self, start: int, stream: MpegStream) -> int:
        """Append the frame at `start` and its followers of one kind in the block to `stream`. Returns their end."""
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
    """Kind and size in bytes of the frame with these first four bytes."""
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
    """The position of the next stream of frames, after tags and other bytes.

    The frame before `position` may have been cut: a stream that begins inside of it, from `earliest` on, comes first.
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
    """True for frames of one kind in sequence, and for fewer of them up to a tag or to the end of the file.

    A frame with a header tag is enough.
    """
    kind = None
    for count in range(FRAMES_IN_SEQUENCE):
        frame = window.frame(position)
        if frame is None or frame[0] != (kind or frame[0]):
            return count > 0 and (position == window.length or _tag_end(window, position) is not None)
        kind, size = frame
        if count == 0 and window.header_tag(position, size, kind):
            return True
        position += size
    return True


def _tag_end(window: _Window, position: int) -> int | None:
    """The end of the tag at `position`, if one begins there and the file holds all of it."""
    size = tag_size(window.read(position, TAG_HEAD_BYTES))
    return position + size if 0 < size <= window.length - position else None
