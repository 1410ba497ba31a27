"""A file made of byte ranges of another file, without a copy."""

import os
from bisect import bisect_right
from typing import BinaryIO


class Spans:
    """The bytes `head`, then the `spans` (start, end) of `content`, as a file to read."""

    def __init__(self, content: BinaryIO, spans: list[tuple[int, int]], head: bytes = b"") -> None:
        self._content = content
        self._head = head
        self._spans = spans
        self._starts = [len(head)]
        for start, end in spans:
            self._starts.append(self._starts[-1] + end - start)
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._starts[-1]}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        wanted = self._starts[-1] - self._position if size < 0 else size
        parts = []
        while wanted > 0 and (part := self._part(wanted)):
            parts.append(part)
            wanted -= len(part)
            self._position += len(part)
        return b"".join(parts)

    def _part(self, size: int) -> bytes:
        """Up to `size` bytes at the position, from one range."""
        if self._position < len(self._head):
            return self._head[self._position : self._position + size]
        number = bisect_right(self._starts, self._position) - 1
        if number == len(self._spans):
            return b""
        start, end = self._spans[number]
        start += self._position - self._starts[number]
        self._content.seek(start)
        return self._content.read(min(size, end - start))
