"""What prepare reads: audio files in a folder or on a list, and containers of them."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.audio import AUDIO_EXTENSIONS, AudioDecodeError
from audiodiff_platform.audio_files.containers import audio_column
from audiodiff_platform.audio_files.lists import LIST_EXTENSIONS, listed
from audiodiff_platform.audio_files.source import CONTAINER_EXTENSIONS, Source, utf8
from audiodiff_platform.cluster import holds_secret
from audiodiff_platform.job import JobError
from audiodiff_platform.storage import Entry, Folder

CONCURRENT_REQUESTS = 32
# Versions of files that are planned though they can never be read.
_UNREADABLE = {"missing": "no such file", "not utf-8": "its name is not UTF-8: rename it"}


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
                name = utf8(entry.name)
                yield Source(name, entry.size, entry.version if name == entry.name else "not utf-8")
            else:
                self.others += 1

    def _holds_audio(self, entry: Entry) -> bool:
        with self.folder.filesystem.open(self.folder.path(entry.name), "rb") as file:
            try:
                return audio_column(pq.read_schema(file)) is not None
            except pa.ArrowInvalid:
                return False

    def _on_list(self, listing: Entry) -> Iterator[Source]:
        """The files that a list names; those that are not there are quarantined."""
        yield from self.named(self._audio_on(listing))

    def _audio_on(self, listing: Entry) -> Iterator[str]:
        for number, uri in enumerate(listed(self.folder, listing.name), start=1):
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


def _batches(uris: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(uris)
    while batch := list(islice(remaining, 16 * CONCURRENT_REQUESTS)):
        yield batch
