"""Ranges of bytes of files: read from a store, presented as a file, and digested."""

import hashlib
import io
from abc import abstractmethod
from pathlib import Path
from typing import Any

from audiodiff_platform.audio_files.source import ByteRange, Source
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.commits import file_sha256

SMALL_BYTES, LARGE_BYTES = 64 << 10, 8 << 20
READ_ON_BYTES = 2 << 20  # to read on so far takes no longer than another request
DIGESTED_BYTES = 1 << 20


class _Positioned(io.RawIOBase):
    """A file of `size` bytes with a position; a subclass reads the bytes."""

    def __init__(self, size: int) -> None:
        self._size, self._position = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"no byte {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._position))
        content = self._read(self._position, wanted) if wanted else b""
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    @abstractmethod
    def _read(self, start: int, count: int) -> bytes:
        """Return at least one byte from `start`, at most `count`."""


class PartFile(_Positioned):
    """The bytes of a part of a local file, as a file."""

    def __init__(self, local: Path, part: ByteRange) -> None:
        super().__init__(part.stop - part.start)
        self._file, self._start = io.FileIO(local), part.start

    def close(self) -> None:
        self._file.close()
        super().close()

    def _read(self, start: int, count: int) -> bytes:
        self._file.seek(self._start + start)
        return self._file.read(count)


class StoredFile(_Positioned):
    """A file of a folder on a store, of which the last range read is in memory.

    A range is small where reads lie far apart, and large where it costs less to read on.
    """

    def __init__(self, folder: Folder, name: str, size: int) -> None:
        super().__init__(size)
        self._folder, self._name = folder, name
        self._start, self._content = 0, b""

    def _read(self, start: int, count: int) -> bytes:
        end = self._start + len(self._content)
        if not self._start <= start < end:
            length = LARGE_BYTES if self._content and 0 <= start - end <= READ_ON_BYTES else SMALL_BYTES
            self._content = self._folder.read_range(self._name, start, min(start + length, self._size))
            self._start = start
        return self._content[start - self._start : start - self._start + count]


def fetched_part(folder: Folder, name: str, source: Source, part: ByteRange, scratch: Path) -> Path:
    """A local file that has the bytes of a part at their place: the file itself, or a copy with holes."""
    if folder.is_local:
        return Path(folder.path(name))
    ranges = [(part.start, part.stop)]
    if source.extension == ".parquet":
        length = int.from_bytes(folder.read_range(name, source.size - 8, source.size - 4), "little")
        ranges.append((max(0, source.size - 8 - length), source.size))  # the footer
    return folder.fetch_ranges(name, source.size, ranges, scratch)


def source_sha256(source: Source, local: Path) -> str:
    """The digest of a source's bytes in hexadecimal, given the local file that has them at their place."""
    if source.part is None:
        return file_sha256(local)
    digest = hashlib.sha256()
    with PartFile(local, source.part) as file:
        while content := file.read(DIGESTED_BYTES):
            digest.update(content)
    return digest.hexdigest()
