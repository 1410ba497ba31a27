"""Audio files in a folder or on a list, and containers of them, which prepare reads."""

import errno
import io
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.audio import AUDIO_EXTENSIONS, AudioDecodeError
from audiodiff_platform.audio_files.hidden import is_hidden_folder
from audiodiff_platform.audio_files.lists import LIST_EXTENSIONS, listed, spellings, without_blanks
from audiodiff_platform.audio_files.parquet_rows import (
    READ_BUFFER_BYTES,
    RowsWithoutAudio,
    audio_column,
    is_damage,
    not_embedded,
    rows_without_audio,
)
from audiodiff_platform.audio_files.ranges import StoredFile, fetched_part, source_sha256
from audiodiff_platform.audio_files.skipped import described, kind_of, refusal
from audiodiff_platform.audio_files.source import CONTAINER_EXTENSIONS, Source, changed, passed_over, utf8
from audiodiff_platform.cluster import holds_secret
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.storage import Entry, Folder, PassedOver
from audiodiff_platform.storage.scratch import scratch_folder

CONCURRENT_REQUESTS = 32
# Versions of files that are planned though they can never be read.
_UNREADABLE = {
    "missing": "no such file",
    "forbidden": "cannot be opened (Permission denied)",
    "not utf-8": "its name is not UTF-8: rename it",
    "elsewhere": "its name reads as that of a file elsewhere: rename it",
    "folder": "a folder: list its files, or give the folder as input_dir",
    "special": "a device, pipe or socket, not a file",
}
UNREADABLE_SHOWN = 10
_NO_SUCH_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})


class Inputs:
    """The input by its URI: a folder or prefix, a single file, or a list of names (.txt, or a column of .parquet)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._passed_over = PassedOver(is_hidden_folder)
        self.skipped: Counter[str] = self._passed_over.counts
        self.unreadable = self._passed_over.unreadable
        self.others = 0
        self._without_audio: dict[str, RowsWithoutAudio] = {}
        extension = PurePosixPath(uri).suffix.lower()
        alone = extension in LIST_EXTENSIONS | CONTAINER_EXTENSIONS | AUDIO_EXTENSIONS and not Folder(uri).is_folder()
        self.folder = Folder(uri.rstrip("/").rsplit("/", 1)[0] if alone else uri)
        self._file = uri.rstrip("/").rsplit("/", 1)[1] if alone else None

    def sources(self) -> Iterator[Source]:
        """List what there is to read, in no order.

        `others` counts the files passed over, `skipped` counts files, folders and links by the reason, `unreadable` names
        folders. Raises ValueError where the input is not there, and at the end where it is Parquet that names audio and
        holds none.
        """
        holds_audio = False
        for source in self._in_folder() if self._file is None else self._alone(self._file):
            rows = self._without_audio.get(source.uri)
            holds_audio = holds_audio or rows is None or not rows.are_all
            yield source
        if self._without_audio:
            message = not_embedded(self._without_audio)
            if not holds_audio:
                raise ValueError(f"input_dir {self.uri}: {message}")
            say(f"warning: {message}")

    def named(self, uris: Iterable[str]) -> Iterator[Source]:
        """The files of these URIs, relative ones in the input folder; those that are not there are planned as missing."""
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
            for batch in _batches(uris):
                yield from pool.map(self._planned, batch)

    def describe(self) -> list[str]:
        """Describe what was passed over: a line of counts, then a line for each of the first unreadable folders."""
        lines = [f"passed over: {described(self.skipped)}"] if self.skipped else []
        shown = self.unreadable[:UNREADABLE_SHOWN]
        lines += [f"warning: cannot be read and is left out: {self.folder.uri}/{name}" for name in shown]
        if len(self.unreadable) > UNREADABLE_SHOWN:
            lines.append(f"warning: {len(self.unreadable) - UNREADABLE_SHOWN:,} more folders and links cannot be read")
        return lines

    def _skip(self, kind: str) -> None:
        """Count a file that is passed over."""
        self.skipped[kind] += 1
        self.others += 1

    def _in_folder(self) -> Iterator[Source]:
        for entry in self._walk():
            path = PurePosixPath(entry.name)
            extension = path.suffix.lower()
            if kind := passed_over(path):
                self._skip(kind)
            elif extension in AUDIO_EXTENSIONS | {".tar"} or (
                extension == ".parquet" and self._may_hold_audio(entry.name)
            ):
                name = utf8(entry.name)
                version = entry.version if name == entry.name else "not utf-8"
                yield Source(name, entry.size, "elsewhere" if _is_elsewhere(name) else version)
            else:
                self._skip(kind_of(entry.name))

    def _walk(self) -> Iterator[Entry]:
        """The files of the input folder; raises ValueError where the folder itself is not there or cannot be read."""
        try:
            if not self.folder.is_folder():
                if self.folder.exists():
                    raise ValueError(f"input_dir {self.uri}: {refusal(PurePosixPath(self.uri).name)}")
                self.folder.entry("")  # raises PermissionError where the folder may be there
                raise ValueError(f"input_dir {self.uri}: no such folder")
            yield from self.folder.walk(self._passed_over)
        except FileNotFoundError as error:
            raise ValueError(f"input_dir {self.uri}: no such folder") from error
        except PermissionError as error:
            raise self._unreadable(error) from error

    def _alone(self, name: str) -> Iterator[Source]:
        """A single file, or the files on a list."""
        try:
            entry = self.folder.entry(name)
            special = _special(self.folder, entry)
            if special is None:
                self.folder.filesystem.open(self.folder.path(name), "rb").close()
        except FileNotFoundError as error:
            raise ValueError(f"input_dir {self.uri}: no such file or folder") from error
        except PermissionError as error:
            raise self._unreadable(error) from error
        if special:
            raise ValueError(f"input_dir {self.uri}: {_UNREADABLE[special]}")
        extension = PurePosixPath(name).suffix.lower()
        if extension == ".txt" or (extension == ".parquet" and not self._may_hold_audio(name)):
            yield from self._on_list(entry)
        else:
            yield Source(entry.name, entry.size, entry.version)

    def _may_hold_audio(self, uri: str) -> bool:
        """Return False for Parquet without an audio column. A damaged or unreadable file is planned, and so quarantined."""
        folder, name = self._place(uri)
        try:
            file = folder.filesystem.open(folder.path(name), "rb")
        except PermissionError:
            return True  # it is quarantined when it is read
        with file:
            try:
                table = pq.ParquetFile(file, buffer_size=READ_BUFFER_BYTES)
                column = audio_column(table.schema_arrow)
                if column is not None and (rows := rows_without_audio(table, column)).missing:
                    self._without_audio[uri] = rows
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                if not is_damage(error):
                    raise
                return True
        return column is not None

    def _on_list(self, listing: Entry) -> Iterator[Source]:
        """The files that a list names, each once; those that are not there are quarantined."""
        seen: set[int] = set()
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
            for batch in _batches(self._entries_on(listing)):
                for source, place, kind in pool.map(self._resolved, batch):
                    if kind:
                        self._skip(kind)
                    elif hash(place) not in seen:
                        seen.add(hash(place))
                        yield source

    def _entries_on(self, listing: Entry) -> Iterator[str]:
        for number, uri in enumerate(listed(self.folder, listing.name), start=1):
            if holds_secret(uri):
                raise ValueError(
                    f"input_dir {self.uri}: entry {number} holds a query or a password, and names are written into the dataset: "
                    "list plain URIs, with credentials in the environment"
                )
            yield uri

    def _resolved(self, entry: str) -> tuple[Source, str, str | None]:
        """The file of a list's entry, its place, and the kind by which it is counted instead where it is passed over."""
        source = self._planned(entry)
        folder, name = self._place(source.uri)
        place = folder.path(name)
        root = f"{self.folder.root.rstrip('/')}/"
        kind = passed_over(PurePosixPath(place.removeprefix(root) if place.startswith(root) else f"/{place}"))
        extension = PurePosixPath(source.uri.strip()).suffix.lower()
        if kind is None and source.version != "folder" and extension not in AUDIO_EXTENSIONS | CONTAINER_EXTENSIONS:
            kind = kind_of(source.uri)
        if kind is None and source.extension == ".parquet" and source.version not in _UNREADABLE:
            self._may_hold_audio(source.uri)
        return source, place, kind

    def _planned(self, entry: str) -> Source:
        """The file that an entry means, by the first of its spellings that is there."""
        for uri in spellings(entry):
            folder, name = self._place(uri)
            try:
                status = folder.entry(name)
                version = _special(folder, status)
            except (OSError, ValueError) as error:  # ValueError: a name with a NUL character
                if isinstance(error, PermissionError):
                    return Source(uri, 0, "forbidden")
                if not isinstance(error, FileNotFoundError | ValueError) and error.errno not in _NO_SUCH_FILE:
                    raise
                continue
            return Source(uri, 0, version) if version else Source(uri, status.size, status.version)
        return Source(without_blanks(entry), 0, "missing")

    def _place(self, uri: str) -> tuple[Folder, str]:
        """The folder in which a source lies, and its name there."""
        if _is_elsewhere(uri):
            parent, _, name = uri.rpartition("/")
            return Folder(parent or "/"), name
        return self.folder, uri

    def fetch(self, source: Source, scratch: Path) -> Path:
        """A source as a local file.

        A file of the same size that was touched or copied since is taken: nothing was made of it before. Raises
        AudioDecodeError where it can never be read, JobError where it has vanished or has another size, OSError where the
        disk of `scratch` has no room for a copy.
        """
        if source.version in _UNREADABLE:
            raise AudioDecodeError(source.uri, _UNREADABLE[source.version])
        folder, name = self._place(source.uri)
        try:
            entry = folder.entry(name)
        except FileNotFoundError as error:
            raise JobError(
                f"{source.uri} was planned and has vanished: put it back, or prepare into another folder"
            ) from error
        if entry.size != source.size:
            raise changed(source)
        if not folder.is_local:
            _require_room(source, scratch)
        try:
            local = (
                folder.fetch(name, scratch)
                if source.part is None
                else fetched_part(folder, name, source, source.part, scratch)
            )
            with local.open("rb"):
                return local
        except PermissionError as error:  # of this file: its folder has just been read
            raise AudioDecodeError(source.uri, f"cannot be opened ({error.strerror or error})") from error

    def opened(self, source: Source) -> io.RawIOBase:
        """A source's file as it is now, of which few bytes are to be read."""
        folder, name = self._place(source.uri)
        return io.FileIO(folder.path(name)) if folder.is_local else StoredFile(folder, name, source.size)

    def _unreadable(self, error: PermissionError) -> ValueError:
        return ValueError(
            f"input_dir {self.uri}: cannot be read ({error.strerror or error}): allow it, or name another"
        )

    def sha256(self, source: Source) -> str | None:
        """The digest of a source's bytes in hexadecimal; None where they cannot be read."""
        with scratch_folder() as scratch:
            try:
                return source_sha256(source, self.fetch(source, scratch))
            except AudioDecodeError:
                return None


def _is_elsewhere(uri: str) -> bool:
    """True for a URI or an absolute path, as opposed to a name in the input folder."""
    return "://" in uri or uri.startswith("/")


def _require_room(source: Source, scratch: Path) -> None:
    free = shutil.disk_usage(scratch).free
    if free < source.bytes:
        raise OSError(
            f"{source.uri}: {source.bytes / 1e6:,.0f} MB do not fit on the disk of {scratch}, where {free / 1e6:,.0f} MB are free: "
            "make room there, or let TMPDIR name a larger disk"
        )


def _batches(uris: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(uris)
    while batch := list(islice(remaining, 16 * CONCURRENT_REQUESTS)):
        yield batch


def _special(folder: Folder, entry: Entry) -> str | None:
    """The version of a name that is no file, None for a file."""
    path = folder.path(entry.name)
    if not folder.is_local:
        return "folder" if entry.size == 0 and folder.filesystem.isdir(path) else None
    mode = os.stat(path).st_mode
    return "folder" if stat.S_ISDIR(mode) else None if stat.S_ISREG(mode) else "special"
