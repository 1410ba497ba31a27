"""Parts of a file, read as if they were a file."""

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, BinaryIO

Part = tuple[int, int] | bytes
"""Start and end of a range of a file, or bytes in its place."""


class FileParts(io.RawIOBase):
    """The `parts` of `content`, one after another. `content` must stay open, and may be read elsewhere in between."""

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
        """Read from the part that holds the position, up to its end."""
        number = bisect_right(self.ends, self.position)
        if number == len(self.parts):
            return 0
        part = self.parts[number]
        left = self.ends[number] - self.position
        wanted = min(len(buffer), left)
        if isinstance(part, bytes):
            piece = part[len(part) - left : len(part) - left + wanted]
        else:
            self.content.seek(part[1] - left)
            piece = self.content.read(wanted)
        buffer[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)


def _length(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else part[1] - part[0]
