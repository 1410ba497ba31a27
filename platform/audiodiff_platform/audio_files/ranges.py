"""Byte ranges of files: reading from object stores, file objects and digests."""

import hashlib
import io
import uuid
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from audiodiff_platform.audio_files.source import ByteRange, Source
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.commits import file_sha256

SMALL_BYTES, LARGE_BYTES = 64 << 10, 8 << 20
MAX_SKIPPED_BYTES = 2 << 20  # reading and discarding this much takes no longer than another request
DIGEST_BLOCK_BYTES = 1 << 20
MAX_RANGE_BYTES = 16 << 20  # per request


class _Positioned(io.RawIOBase):
    """Read-only file object of `size` bytes. Subclasses implement `_read`."""

    def __init__(self, size: int) -> None:
        self._size, self._position = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"seek to byte {position}: must be at least 0")
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
        """Return 1 to `count` bytes, beginning at byte `start`."""


class PartFile(_Positioned):
    """File object for a byte range of a local file.

    Args:
        local: The local file.
        part: The range. Position 0 of the file object is the first byte of the range.
    """

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
    """File object for a file on an object store. The last range that was read is kept in memory.

    A request reads LARGE_BYTES if it begins at most MAX_SKIPPED_BYTES after the last range, and SMALL_BYTES otherwise.

    Args:
        folder: The folder of the file.
        name: The name of the file in the folder.
        size: The size of the file in bytes.
    """

    def __init__(self, folder: Folder, name: str, size: int) -> None:
        super().__init__(size)
        self._folder, self._name = folder, name
        self._start, self._content = 0, b""

    def _read(self, start: int, count: int) -> bytes:
        end = self._start + len(self._content)
        if not self._start <= start < end:
            length = LARGE_BYTES if self._content and 0 <= start - end <= MAX_SKIPPED_BYTES else SMALL_BYTES
            self._content = self._folder.read_range(self._name, start, min(start + length, self._size))
            self._start = start
        return self._content[start - self._start : start - self._start + count]


def fetch_part(folder: Folder, name: str, source: Source, part: ByteRange, scratch: Path) -> Path:
    """Fetch a part of a container.

    Args:
        folder: The folder of the container.
        name: The name of the container in the folder.
        source: The source of the part.
        part: The range to fetch.
        scratch: A local folder for the copy.

    Returns:
        A local file with the size of the container and the bytes of the part at their original offsets. The file is the
        container itself if `folder` is local, else a sparse copy. The copy of a Parquet file also holds the footer.
    """
    if folder.is_local:
        return Path(folder.path(name))
    ranges = [(part.start, part.stop)]
    if source.extension == ".parquet":
        length = int.from_bytes(folder.read_range(name, source.size - 8, source.size - 4), "little")
        ranges.append((max(0, source.size - 8 - length), source.size))
    return _fetch_ranges(folder, name, source.size, ranges, scratch)


def _fetch_ranges(folder: Folder, name: str, size: int, ranges: Iterable[tuple[int, int]], scratch: Path) -> Path:
    """Copy parts of a file to a sparse local file in `scratch`.

    Args:
        folder: The folder of the file.
        name: The name of the file.
        size: The size of the file in bytes.
        ranges: The parts as (start, stop) in bytes. The rest of the local file is a hole.
        scratch: A local folder.

    Returns:
        The local file of `size` bytes.
    """
    local = scratch / f"{uuid.uuid4().hex}{Path(name).suffix}"
    with local.open("wb") as file:
        file.truncate(size)
        for start, stop in ranges:
            for first in range(start, stop, MAX_RANGE_BYTES):
                file.seek(first)
                file.write(folder.read_range(name, first, min(first + MAX_RANGE_BYTES, stop)))
    return local


def source_sha256(source: Source, local: Path) -> str:
    """Compute the SHA-256 digest of a source.

    Args:
        source: A file, or a part of a container.
        local: The local file of the source, with the bytes of a part at their original offsets.

    Returns:
        The digest of the bytes of the file or part, in hexadecimal.
    """
    if source.part is None:
        return file_sha256(local)
    digest = hashlib.sha256()
    with PartFile(local, source.part) as file:
        while content := file.read(DIGEST_BLOCK_BYTES):
            digest.update(content)
    return digest.hexdigest()
