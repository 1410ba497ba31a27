"""What prepare reads: audio files in a folder or on a list, and the audio inside tar shards (WebDataset) and Parquet files (Hugging Face).

A `Source` is a file as it is planned: one audio file, or a container of many. `items` opens a source's audio files one by one, each as
a local file; a container's are named `CONTAINER/MEMBER`.
"""

import json
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.audio import AUDIO_EXTENSIONS, AudioDecodeError
from audiodiff_platform.cluster import holds_secret
from audiodiff_platform.job import JobError
from audiodiff_platform.storage import Entry, Folder

CONTAINER_EXTENSIONS = frozenset({".tar", ".parquet"})
LIST_EXTENSIONS = frozenset({".txt", ".parquet"})
CONCURRENT_REQUESTS = 32
LIST_COLUMNS = ("uri", "url", "path", "audio_file", "file", "file_name")
# Versions of files that are planned though they can never be read.
_UNREADABLE = {"missing": "no such file", "not utf-8": "its name is not UTF-8: rename it"}

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


@dataclass(frozen=True)
class Item:
    """An audio file: its name in the dataset, and where it can be read now."""

    name: str
    local: Path


class Inputs:
    """The input by its URI: a folder or prefix, a list (.txt, a URI a line; .parquet with a column of URIs), or a single file."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.others = 0
        extension = PurePosixPath(uri).suffix.lower()
        alone = extension in LIST_EXTENSIONS | CONTAINER_EXTENSIONS | AUDIO_EXTENSIONS and not Folder(uri).is_folder()
        self.folder = Folder(uri.rsplit("/", 1)[0] if alone else uri)
        self._file = uri.rsplit("/", 1)[1] if alone else None

    def sources(self) -> Iterator[Source]:
        """What there is to read, in no order; `others` counts the files passed over. Raises ValueError where the input is not there."""
        if self._file is None:
            yield from self._in_folder()
            return
        try:
            entry = self.folder.entry(self._file)
        except FileNotFoundError as error:
            raise ValueError(f"input_dir {self.uri}: no such file or folder") from error
        extension = PurePosixPath(self._file).suffix.lower()
        if extension == ".txt" or (extension == ".parquet" and not self._holds_audio(entry)):
            yield from self._on_list(entry)
        else:
            yield Source(entry.name, entry.size, entry.version)

    def named(self, uris: Iterable[str]) -> Iterator[Source]:
        """The files of these URIs, relative ones in the input folder; those that are not there are planned as missing."""
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
            for some in _batches(uris):
                yield from pool.map(self._planned, some)

    def _in_folder(self) -> Iterator[Source]:
        if not self.folder.is_folder():
            raise ValueError(f"input_dir {self.uri}: no such folder")
        for entry in self.folder.walk():
            path = PurePosixPath(entry.name)
            extension = path.suffix.lower()
            wanted = extension in AUDIO_EXTENSIONS or extension == ".tar" or (extension == ".parquet" and self._holds_audio(entry))
            if wanted and not path.name.startswith("."):
                name = _utf8(entry.name)
                yield Source(name, entry.size, entry.version if name == entry.name else "not utf-8")
            else:
                self.others += 1

    def _holds_audio(self, entry: Entry) -> bool:
        with self.folder.filesystem.open(self.folder.path(entry.name), "rb") as file:
            try:
                return _audio_column(pq.read_schema(file)) is not None
            except pa.ArrowInvalid:
                return False

    def _on_list(self, listing: Entry) -> Iterator[Source]:
        """The files that a list names; those that are not there are quarantined."""
        yield from self.named(self._audio_on(listing))

    def _audio_on(self, listing: Entry) -> Iterator[str]:
        for number, uri in enumerate(self._listed(listing), start=1):
            if holds_secret(uri):
                raise ValueError(
                    f"input_dir {self.uri}: entry {number} holds a query or a password, and names are written into the dataset: "
                    "list plain URIs, with credentials in the environment"
                )
            if PurePosixPath(uri).suffix.lower() not in AUDIO_EXTENSIONS | CONTAINER_EXTENSIONS:
                self.others += 1
            else:
                yield uri

    def _planned(self, uri: str) -> Source:
        folder, name = self._place(uri)
        try:
            entry = folder.entry(name)
        except FileNotFoundError:
            return Source(uri, 0, "missing")
        return Source(uri, entry.size, entry.version)

    def _listed(self, listing: Entry) -> Iterator[str]:
        with self.folder.filesystem.open(self.folder.path(listing.name), "rb") as file:
            if PurePosixPath(listing.name).suffix.lower() == ".txt":
                for line in file:
                    text = line.decode().strip()
                    if text and not text.startswith("#"):
                        yield text
                return
            table = pq.ParquetFile(file)
            strings = [field.name for field in table.schema_arrow if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
            column = next((name for name in LIST_COLUMNS if name in strings), None)
            if column is None:
                columns = ", ".join(table.schema_arrow.names)
                raise ValueError(f"input_dir {self.uri}: neither an audio column nor one of URIs ({', '.join(LIST_COLUMNS)}); its columns are {columns}")
            for batch in table.iter_batches(columns=[column]):
                yield from filter(None, batch.column(0).to_pylist())

    def _place(self, uri: str) -> tuple[Folder, str]:
        """The folder in which a source lies, and its name there."""
        if "://" in uri or uri.startswith("/"):
            parent, _, name = uri.rpartition("/")
            return Folder(parent or "/"), name
        return self.folder, uri

    def fetch(self, source: Source, scratch: Path) -> Path:
        """A source as a local file.

        Raises AudioDecodeError where it can never be read, JobError where it is no longer what was planned.
        """
        if source.version in _UNREADABLE:
            raise AudioDecodeError(source.uri, _UNREADABLE[source.version])
        folder, name = self._place(source.uri)
        try:
            entry = folder.entry(name)
        except FileNotFoundError as error:
            raise JobError(f"{source.uri} was planned and has vanished: put it back, or prepare into another folder") from error
        if (entry.size, entry.version) != (source.size, source.version):
            raise JobError(f"{source.uri} has changed since it was planned: restore it, or prepare into another folder")
        return folder.fetch(name, scratch)


class Archive(tarfile.TarFile):
    """A tar file, which keeps the headers that it has read in `members`."""

    members: list[tarfile.TarInfo]


def items(source: Source, local: Path, scratch: Path) -> Iterator[Item]:
    """The audio files of a source, each to be read before the next is asked for.

    Raises AudioDecodeError, also after some items, where a container cannot be read on.
    """
    match source.extension:
        case ".tar":
            yield from _members(source, local, scratch)
        case ".parquet":
            yield from _rows(source, local, scratch)
        case _:
            yield Item(source.uri, local)


def _members(source: Source, local: Path, scratch: Path) -> Iterator[Item]:
    try:
        with Archive.open(local, "r:") as archive:
            for member in archive:
                archive.members.clear()  # or a shard of many members would fill the memory with their headers
                extension = PurePosixPath(member.name).suffix.lower()
                if extension not in AUDIO_EXTENSIONS or not member.isreg() or member.issparse():
                    continue
                content = archive.extractfile(member)
                assert content is not None, "a regular member has content"
                target = scratch / f"item{extension}"
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
                yield Item(f"{source.uri}/{_utf8(member.name)}", target)
    except tarfile.TarError as error:
        raise AudioDecodeError(source.uri, f"archive that cannot be read on ({error})") from error


def _rows(source: Source, local: Path, scratch: Path) -> Iterator[Item]:
    for number, (content, path) in enumerate(_cells(source, local)):
        extension = PurePosixPath(path).suffix.lower()
        target = scratch / f"item{extension if extension in AUDIO_EXTENSIONS else ''}"
        target.write_bytes(content)
        yield Item(f"{source.uri}/{number}" + (f"-{PurePosixPath(path).name}" if path else ""), target)


def _cells(source: Source, local: Path) -> Iterator[tuple[bytes, str]]:
    """Each row's audio and the name that it had, empty where there is none."""
    try:
        with pq.ParquetFile(local, buffer_size=1 << 20) as table:  # buffered, or a whole row group's audio would be in memory
            column = _audio_column(table.schema_arrow)
            if column is None:
                raise AudioDecodeError(source.uri, "Parquet without an audio column")
            for batch in table.iter_batches(batch_size=1, columns=[column]):
                for cell in batch.column(0).to_pylist():
                    yield (cell["bytes"] or b"", cell["path"] or "") if isinstance(cell, dict) else (cell or b"", "")
    except (pa.ArrowException, OSError) as error:
        raise AudioDecodeError(source.uri, f"Parquet that cannot be read on ({' '.join(str(error).split())})") from error


def _audio_column(schema: pa.Schema) -> str | None:
    """The column that Hugging Face's metadata calls audio, else one of that name; none where its type holds no bytes."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        stated = [name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == "Audio"]
    except (ValueError, KeyError, TypeError, AttributeError):  # the metadata is not that of datasets
        stated = []
    for name in [*stated, "audio"]:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
                return str(name)
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return str(name)
    return None


def _utf8(name: str) -> str:
    """A name that was bytes once, as text that Parquet can hold."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _batches(uris: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(uris)
    while batch := list(islice(remaining, 16 * CONCURRENT_REQUESTS)):
        yield batch
