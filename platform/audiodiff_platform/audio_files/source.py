"""A file of the input as it is planned: one audio file, or a container of many."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from audiodiff_platform.audio_files.hidden import is_hidden, is_hidden_folder
from audiodiff_platform.entry.errors import JobError

CONTAINER_EXTENSIONS = frozenset({".tar", ".parquet"})
HIDDEN = "hidden files"

# Bytes per second of typical files, to balance shards; a wrong guess makes a shard larger or smaller, nothing else.
_PCM_EXTENSIONS = (".wav", ".wave", ".bwf", ".rf64", ".w64", ".aif", ".aiff", ".aifc", ".au", ".snd")
_BYTES_PER_SECOND = {**dict.fromkeys(_PCM_EXTENSIONS, 176_000), ".flac": 100_000}
_COMPRESSED_BYTES_PER_SECOND = 24_000


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes of a part of a container: its members or row groups are those that begin in the range."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the input, or a part of a container.

    Args:
        uri: The URI of the file, relative to the input folder if it lies in it.
        size: The bytes of the file.
        version: What changes when the file does.
        part: The part of the file, or None for the whole.
    """

    uri: str
    size: int
    version: str
    part: ByteRange | None = None

    @property
    def key(self) -> str:
        """The name of the source in a plan: the URI, for a part with its range."""
        return self.uri if self.part is None else f"{self.uri}[{self.part.start}:{self.part.stop}]"

    @property
    def bytes(self) -> int:
        """The bytes of the source, of a part those of the part."""
        return self.size if self.part is None else self.part.stop - self.part.start

    @property
    def extension(self) -> str:
        return PurePosixPath(self.uri).suffix.lower()

    @property
    def is_container(self) -> bool:
        return self.extension in CONTAINER_EXTENSIONS

    @property
    def seconds(self) -> float:
        """The audio that it may hold, guessed from its size."""
        return self.bytes / _BYTES_PER_SECOND.get(self.extension, _COMPRESSED_BYTES_PER_SECOND)


class IndivisibleError(Exception):
    """A container that cannot be read in parts."""


def changed(source: Source) -> JobError:
    """The error for a source that is no longer the planned one."""
    return JobError(f"{source.uri} has changed since it was planned: restore it, or prepare into another folder")


def utf8(name: str) -> str:
    """A name that was bytes once, as text that Parquet can hold."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def passed_over(path: PurePosixPath) -> str | None:
    """The kind by which a hidden file or one of the system is counted, None for all others.

    Of an absolute path only the file's name counts: a corpus may lie in `.cache`.
    """
    folders = () if path.is_absolute() else path.parts[:-1]
    return HIDDEN if is_hidden(path.name) or any(is_hidden_folder(name) for name in folders if name != "..") else None
