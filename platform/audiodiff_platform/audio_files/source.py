"""Planned files of the input: audio files and containers of audio files."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from audiodiff_platform.audio_files.hidden import is_hidden, is_hidden_folder
from audiodiff_platform.entry.errors import JobError

CONTAINER_EXTENSIONS = frozenset({".tar", ".parquet"})
HIDDEN = "hidden files"

# Bytes per second of typical files. Only estimates of durations use these numbers: the content of a dataset does not
# depend on them, except for the assignment of files to shards.
_PCM_EXTENSIONS = (".wav", ".wave", ".bwf", ".rf64", ".w64", ".aif", ".aiff", ".aifc", ".au", ".snd")
_BYTES_PER_SECOND = {**dict.fromkeys(_PCM_EXTENSIONS, 176_000), ".flac": 100_000}
_COMPRESSED_BYTES_PER_SECOND = 24_000


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A range of bytes of a container, with the members or row groups that begin in the range.

    Args:
        start: The first byte of the range.
        stop: The byte after the range.
    """

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the input, or a part of a container.

    Args:
        uri: The URI of the file, relative to the input folder for files in that folder.
        size: The size of the file in bytes.
        version: A text that changes when the file changes, such as its modification time or ETag.
        part: The part of the container, or None for the complete file.
    """

    uri: str
    size: int
    version: str
    part: ByteRange | None = None

    @property
    def key(self) -> str:
        """The name of the source in a plan: the URI, and for a part also the byte range."""
        return self.uri if self.part is None else f"{self.uri}[{self.part.start}:{self.part.stop}]"

    @property
    def bytes(self) -> int:
        """The size of the source in bytes: the size of the part, or of the complete file."""
        return self.size if self.part is None else self.part.stop - self.part.start

    @property
    def extension(self) -> str:
        return PurePosixPath(self.uri).suffix.lower()

    @property
    def is_container(self) -> bool:
        return self.extension in CONTAINER_EXTENSIONS

    @property
    def in_container(self) -> bool:
        """True if the URI is that of a member of a container."""
        return any(folder.suffix.lower() in CONTAINER_EXTENSIONS for folder in PurePosixPath(self.uri).parents)

    @property
    def seconds(self) -> float:
        """The duration of the audio in seconds, estimated from the size and the extension."""
        return self.bytes / _BYTES_PER_SECOND.get(self.extension, _COMPRESSED_BYTES_PER_SECOND)


class IndivisibleError(Exception):
    """A container that cannot be read in parts."""


def changed_error(source: Source) -> JobError:
    """Return the error for a source that changed after it was planned."""
    return JobError(f"{source.uri} has changed since it was planned: restore it, or set another output_dir")


def utf8(name: str) -> str:
    """Escape the bytes of a file name that are not UTF-8, so that Parquet can store the name."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def hidden_kind(path: PurePosixPath) -> str | None:
    """Return HIDDEN for hidden files and for files in hidden or system folders, None for other files.

    The folders of an absolute path are not checked: a corpus may lie in `.cache`.
    """
    folders = () if path.is_absolute() else path.parts[:-1]
    return HIDDEN if is_hidden(path.name) or any(is_hidden_folder(name) for name in folders if name != "..") else None
