"""A file of the input as it is planned: one audio file, or a container of many."""

from dataclasses import dataclass
from pathlib import PurePosixPath

CONTAINER_EXTENSIONS = frozenset({".tar", ".parquet"})

# Bytes per second of typical files, to balance shards; a wrong guess makes a shard larger or smaller, nothing else.
_BYTES_PER_SECOND = {".wav": 176_000, ".aif": 176_000, ".aiff": 176_000, ".flac": 100_000}
_COMPRESSED_BYTES_PER_SECOND = 24_000


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the input: its URI (relative to the input folder where it lies in it), its size in bytes, and what changes when it does."""

    uri: str
    size: int
    version: str

    @property
    def extension(self) -> str:
        return PurePosixPath(self.uri).suffix.lower()

    @property
    def is_container(self) -> bool:
        return self.extension in CONTAINER_EXTENSIONS

    @property
    def seconds(self) -> float:
        """The audio that it may hold, guessed from its size."""
        return self.size / _BYTES_PER_SECOND.get(self.extension, _COMPRESSED_BYTES_PER_SECOND)


def utf8(name: str) -> str:
    """A name that was bytes once, as text that Parquet can hold."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
