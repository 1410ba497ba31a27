"""What prepare reads: audio files in a folder or on a list, and containers of them."""

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.audio import AUDIO_EXTENSIONS, AudioDecodeError
from audiodiff_platform.audio_files.containers import audio_column
from audiodiff_platform.audio_files.hidden import is_hidden, is_hidden_folder
from audiodiff_platform.audio_files.lists import LIST_EXTENSIONS, listed
from audiodiff_platform.audio_files.source import CONTAINER_EXTENSIONS, Source, utf8
from audiodiff_platform.cluster import holds_secret
from audiodiff_platform.commits import file_sha256
from audiodiff_platform.job import JobError
from audiodiff_platform.storage import Entry, Folder, PassedOver

CONCURRENT_REQUESTS = 32
# Versions of files that are planned though they can never be read.
_UNREADABLE = {
    "missing": "no such file",
    "forbidden": "cannot be opened (Permission denied)",
    "not utf-8": "its name is not UTF-8: rename it",
    "elsewhere": "its name reads as that of a file elsewhere: rename it",
}
UNREADABLE_SHOWN = 10


class Inputs:
    """The input by its URI: a folder or prefix, a list (.txt, a URI a line; .parquet with a column of URIs), or a single file."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.others = 0
        self._passed_over = PassedOver(is_hidden_folder)
        self.skipped = self._passed_over.counts
        self.unreadable = self._passed_over.unreadable
        extension = PurePosixPath(uri).suffix.lower()
        alone = extension in LIST_EXTENSIONS | CONTAINER_EXTENSIONS | AUDIO_EXTENSIONS and not Folder(uri).is_folder()
        self.folder = Folder(uri.rsplit("/", 1)[0] if alone else uri)
        self._file = uri.rsplit("/", 1)[1] if alone else None

    def sources(self) -> Iterator[Source]:
        """What there is to read, in no order. Raises ValueError where the input is not there.

        `others` counts the files passed over, `skipped` counts files, folders and links by the reason, `unreadable` names
        folders.
        """
        if self._file is None:
            yield from self._in_folder()
            return
        try:
            entry = self.folder.entry(self._file)
            self.folder.filesystem.open(self.folder.path(self._file), "rb").close()
        except FileNotFoundError as error:
            raise ValueError(f"input_dir {self.uri}: no such file or folder") from error
        except PermissionError as error:
            raise self._unreadable(error) from error
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

    def describe(self) -> list[str]:
        """What was passed over, in lines: the counts, then a line for each of the first unreadable folders."""
        lines = [f"{self.others:,} other files passed over{self.skipped_text()}"]
        shown = self.unreadable[:UNREADABLE_SHOWN]
        lines += [f"warning: cannot be read and is left out: {self.folder.uri}/{name}" for name in shown]
        if len(self.unreadable) > UNREADABLE_SHOWN:
            lines.append(f"warning: {len(self.unreadable) - UNREADABLE_SHOWN:,} more folders and links cannot be read")
        return lines

    def skipped_text(self) -> str:
        """The counts of `skipped`, each after a semicolon; empty where there are none."""
        return "".join(f"; {kind}: {count:,}" for kind, count in sorted(self.skipped.items()))

    def _in_folder(self) -> Iterator[Source]:
        for entry in self._entries():
            path = PurePosixPath(entry.name)
            extension = path.suffix.lower()
            if is_hidden(path.name):
                self.skipped["hidden files"] += 1
                self.others += 1
            elif extension in AUDIO_EXTENSIONS | {".tar"} or (extension == ".parquet" and self._holds_audio(entry)):
                name = utf8(entry.name)
                version = entry.version if name == entry.name else "not utf-8"
                yield Source(name, entry.size, "elsewhere" if _is_elsewhere(name) else version)
            else:
                self.others += 1

    def _entries(self) -> Iterator[Entry]:
        """The files of the input folder; raises ValueError where the folder itself is not there or cannot be read."""
        try:
            if not self.folder.is_folder():
                self.folder.entry("")  # raises PermissionError where the folder may be there
                raise ValueError(f"input_dir {self.uri}: no such folder")
            yield from self.folder.walk(self._passed_over)
        except FileNotFoundError as error:
            raise ValueError(f"input_dir {self.uri}: no such folder") from error
        except PermissionError as error:
            raise self._unreadable(error) from error

    def _holds_audio(self, entry: Entry) -> bool:
        """True for a Parquet file with an audio column, and for one that cannot be opened: it is quarantined when read."""
        try:
            with self.folder.filesystem.open(self.folder.path(entry.name), "rb") as file:
                return audio_column(pq.read_schema(file)) is not None
        except PermissionError:
            return True
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
        except PermissionError:
            return Source(uri, 0, "forbidden")
        return Source(uri, entry.size, entry.version)

    def _place(self, uri: str) -> tuple[Folder, str]:
        """The folder in which a source lies, and its name there."""
        if _is_elsewhere(uri):
            parent, _, name = uri.rpartition("/")
            return Folder(parent or "/"), name
        return self.folder, uri

    def fetch(self, source: Source, scratch: Path) -> Path:
        """A source as a local file.

        A file of the same size that was touched or copied since is taken: nothing was made of it before. Raises
        AudioDecodeError where it can never be read, JobError where it has vanished or has another size.
        """
        if source.version in _UNREADABLE:
            raise AudioDecodeError(source.uri, _UNREADABLE[source.version])
        folder, name = self._place(source.uri)
        try:
            entry = folder.entry(name)
        except FileNotFoundError as error:
            raise JobError(f"{source.uri} was planned and has vanished: put it back, or prepare into another folder") from error
        if entry.size != source.size:
            raise JobError(f"{source.uri} has changed since it was planned: restore it, or prepare into another folder")
        try:
            local = folder.fetch(name, scratch)
            with local.open("rb"):
                return local
        except PermissionError as error:  # of this file: its folder has just been read
            raise AudioDecodeError(source.uri, f"cannot be opened ({error.strerror or error})") from error

    def _unreadable(self, error: PermissionError) -> ValueError:
        return ValueError(f"input_dir {self.uri}: cannot be read ({error.strerror or error}): allow it, or name another")

    def sha256(self, source: Source) -> str | None:
        """The digest of a source's bytes in hexadecimal; None where they cannot be read."""
        with tempfile.TemporaryDirectory(prefix="audiodiff-") as scratch:
            try:
                return file_sha256(self.fetch(source, Path(scratch)))
            except AudioDecodeError:
                return None


def _is_elsewhere(uri: str) -> bool:
    """True for a URI or an absolute path, as opposed to a name in the input folder."""
    return "://" in uri or uri.startswith("/")


def _batches(uris: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(uris)
    while batch := list(islice(remaining, 16 * CONCURRENT_REQUESTS)):
        yield batch
