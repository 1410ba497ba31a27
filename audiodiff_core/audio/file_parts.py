"""Parts of a file, read as if they were a file."""

import io
from collections.abc import Sequence
from typing import Any, BinaryIO

Part = tuple[int, int] | bytes
"""Start and end of a range of a file, or bytes in its place."""


class FileParts(io.RawIOBase):
    """The `parts` of `content`, one after another. `content` must stay open, and may be read elsewhere in between."""

    def __init__(self, content: BinaryIO, parts: Sequence[Part]) -> None:
        super().__init__()
        self.content = content
        self.parts = parts
        self.lengths = [len(part) if isinstance(part, bytes) else part[1] - part[0] for part in parts]
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: sum(self.lengths)}
        self.position = max(0, origins[whence] + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Read from the part that holds the position, up to its end."""
        start = 0
        for part, length in zip(self.parts, self.lengths, strict=True):
            skipped = self.position - start
            if skipped < length:
                wanted = min(len(buffer), length - skipped)
                if isinstance(part, bytes):
                    piece = part[skipped : skipped + wanted]
                else:
                    self.content.seek(part[0] + skipped)
                    piece = self.content.read(wanted)
                buffer[: len(piece)] = piece
                self.position += len(piece)
                return len(piece)
            start += length
        return 0
