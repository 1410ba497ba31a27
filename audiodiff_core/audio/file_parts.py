"""File object that reads selected parts of another file."""

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, BinaryIO

Part = tuple[int, int] | bytes
"""Start and end of a byte range of a file, or bytes to insert."""


class FileParts(io.RawIOBase):
    """Concatenation of parts of a file.

    Args:
        content: The file. It must stay open. Other code may change its position between reads.
        parts: The parts in order. Empty parts are dropped.
    """

    def __init__(self, content: BinaryIO, parts: Sequence[Part]) -> None:
        super().__init__()
        self.content = content
        self.parts = [part for part in parts if _length(part)]
        self.ends = list(accumulate(map(_length, self.parts)))
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.ends[-1] if self.ends else 0}
        self.position = max(0, origins[whence] + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Read from the part at the current position, at most to the end of this part."""
        index = bisect_right(self.ends, self.position)
        if index == len(self.parts):
            return 0
        part = self.parts[index]
        remaining = self.ends[index] - self.position
        count = min(len(buffer), remaining)
        if isinstance(part, bytes):
            data = part[len(part) - remaining : len(part) - remaining + count]
        else:
            self.content.seek(part[1] - remaining)
            data = self.content.read(count)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def _length(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else part[1] - part[0]
