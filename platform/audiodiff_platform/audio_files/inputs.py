"""Enumeration of input audio: a folder, a single file or a list."""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.audio import AUDIO_EXTENSIONS
from audiodiff_platform.audio_files.hidden import is_hidden_folder
from audiodiff_platform.audio_files.lists import LIST_EXTENSIONS, list_entries
from audiodiff_platform.audio_files.own_output import output_in
from audiodiff_platform.audio_files.parquet_rows import (
    READ_BUFFER_BYTES,
    RowsWithoutAudio,
    audio_column,
    is_damage,
    not_embedded,
    rows_without_audio,
)
from audiodiff_platform.audio_files.skipped import described, kind_of, refusal
from audiodiff_platform.audio_files.source import CONTAINER_EXTENSIONS, Source, hidden_kind, utf8
from audiodiff_platform.audio_files.source_files import UNREADABLE, SourceFiles, is_absolute, special_version
from audiodiff_platform.cluster import holds_secret
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.storage import Entry, Folder, PassedOver

ItemT = TypeVar("ItemT")

CONCURRENT_REQUESTS = 32
UNREADABLE_SHOWN = 10
OWN_FORMAT = b"audiodiff_format_version"
"""Key in the schema metadata of the manifest of generated loops."""


class Inputs(SourceFiles):
    """Audio files and containers of an input, and access to their files.

    Args:
        uri: The URI of the input: a folder or prefix, a single file, or a list of names (a .txt file, or a .parquet
            file with a column of names).
        output_dir: The folder that a job writes to. If it lies in the input folder, its files are passed over.

    Attributes:
        folder: The input folder, or the folder of the single file or list.
        skipped: The number of skipped files, folders and links, by kind.
        others: The number of skipped files, without skipped folders and links.
        unreadable: The names of folders and links that cannot be read.

    Raises:
        ValueError: The input folder is the folder that the job writes to.
    """

    def __init__(self, uri: str, output_dir: str | None = None) -> None:
        extension = PurePosixPath(uri).suffix.lower()
        is_file = extension in LIST_EXTENSIONS | CONTAINER_EXTENSIONS | AUDIO_EXTENSIONS and not Folder(uri).is_folder()
        super().__init__(Folder(uri.rstrip("/").rsplit("/", 1)[0] if is_file else uri))
        self.uri = uri
        self._file = uri.rstrip("/").rsplit("/", 1)[1] if is_file else None
        self._own_output = None if is_file or output_dir is None else output_in(uri, output_dir)
        self._passed_over = PassedOver(is_hidden_folder)
        self.skipped: Counter[str] = self._passed_over.counts
        self.unreadable = self._passed_over.unreadable
        self.others = 0
        self._without_audio: dict[str, RowsWithoutAudio] = {}

    def sources(self) -> Iterator[Source]:
        """Yield the sources of the input in no particular order.

        The attributes `skipped`, `others` and `unreadable` are updated.

        Raises:
            ValueError: The input does not exist or cannot be read. Also raised after the last source if the input holds
                only Parquet files without embedded audio.
        """
        has_audio = False
        for source in self._in_folder() if self._file is None else self._single_file(self._file):
            rows = self._without_audio.get(source.uri)
            has_audio = has_audio or rows is None or not rows.are_all
            yield source
        if self._without_audio:
            message = not_embedded(self._without_audio)
            if not has_audio:
                raise ValueError(f"input_dir {self.uri}: {message}")
            say(f"warning: {message}")

    def named(self, uris: Iterable[str]) -> Iterator[Source]:
        """Yield the source of each URI. Relative URIs are names in the input folder.

        A file that does not exist is yielded as an unreadable source, for which `fetch` raises AudioDecodeError.
        """
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
            for batch in _batches(uris):
                yield from pool.map(self.look_up, batch)

    def describe(self) -> list[str]:
        """Return log lines about the files that `sources` skipped and the folders that cannot be read."""
        lines = [f"skipped: {described(self.skipped)}"] if self.skipped else []
        shown = self.unreadable[:UNREADABLE_SHOWN]
        lines += [f"warning: skipped, cannot be read: {self.folder.uri}/{name}" for name in shown]
        if len(self.unreadable) > UNREADABLE_SHOWN:
            count = len(self.unreadable) - UNREADABLE_SHOWN
            lines.append(f"warning: skipped, cannot be read: {count:,} more folders and links")
        return lines

    def _skip(self, kind: str) -> None:
        self.skipped[kind] += 1
        self.others += 1

    def _in_folder(self) -> Iterator[Source]:
        """Yield the sources of the input folder, Parquet files last."""
        tables: list[Entry] = []
        for entry in self._walk():
            path = PurePosixPath(entry.name)
            extension = path.suffix.lower()
            if kind := hidden_kind(path):
                self._skip(kind)
            elif extension == ".parquet":
                tables.append(entry)
            elif extension in AUDIO_EXTENSIONS | {".tar"}:
                yield _listed(entry)
            else:
                self._skip(kind_of(entry.name))
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
            for batch in _batches(tables):
                names = [entry.name for entry in batch]
                for entry, may_hold_audio in zip(batch, pool.map(self._may_hold_audio, names), strict=True):
                    if may_hold_audio:
                        yield _listed(entry)
                    else:
                        self._skip(kind_of(entry.name))

    def _walk(self) -> Iterator[Entry]:
        """Yield the files of the input folder. Raise ValueError if the folder is missing or unreadable."""
        try:
            if not self.folder.is_folder():
                if self.folder.exists():
                    raise ValueError(f"input_dir {self.uri}: {refusal(PurePosixPath(self.uri).name)}")
                self.folder.entry("")  # raises PermissionError if the folder may exist
                raise ValueError(f"input_dir {self.uri}: no such folder")
            for entry in self.folder.walk(self._passed_over):
                if self._own_output is None or not entry.name.startswith(f"{self._own_output}/"):
                    yield entry
        except FileNotFoundError as error:
            raise ValueError(f"input_dir {self.uri}: no such folder") from error
        except PermissionError as error:
            raise self._permission_error(error) from error

    def _single_file(self, name: str) -> Iterator[Source]:
        """Yield the source of a single file, or the sources on a list."""
        try:
            entry = self.folder.entry(name)
            special = special_version(self.folder, entry)
            if special is None:
                self.folder.filesystem.open(self.folder.path(name), "rb").close()
        except FileNotFoundError as error:
            raise ValueError(f"input_dir {self.uri}: no such file or folder") from error
        except PermissionError as error:
            raise self._permission_error(error) from error
        if special:
            raise ValueError(f"input_dir {self.uri}: {UNREADABLE[special]}")
        extension = PurePosixPath(name).suffix.lower()
        if extension == ".txt" or (extension == ".parquet" and not self._may_hold_audio(name)):
            yield from self._on_list(entry)
        else:
            yield Source(entry.name, entry.size, entry.version)

    def _may_hold_audio(self, uri: str) -> bool:
        """Return False for a Parquet file without an audio column or with the rows of generated loops, else True.

        An audio column with rows without audio is recorded in `_without_audio`.
        """
        folder, name = self.locate(uri)
        try:
            file = folder.filesystem.open(folder.path(name), "rb")
        except PermissionError:
            return True  # the worker that reads the file quarantines the file
        with file:
            try:
                table = pq.ParquetFile(file, buffer_size=READ_BUFFER_BYTES)
                if OWN_FORMAT in (table.schema_arrow.metadata or {}):  # the loops themselves lie beside their manifest
                    return False
                column = audio_column(table.schema_arrow)
                if column is not None and (rows := rows_without_audio(table, column)).missing:
                    self._without_audio[uri] = rows
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                if not is_damage(error):
                    raise
                return True  # the worker that reads the file quarantines the file
        return column is not None

    def _on_list(self, listing: Entry) -> Iterator[Source]:
        """Yield the sources on a list, each location once.

        Missing files are yielded too, so that the workers quarantine them.
        """
        seen: set[int] = set()
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
            for batch in _batches(self._entries_on(listing)):
                for source, path, kind in pool.map(self._resolved, batch):
                    if kind:
                        self._skip(kind)
                    elif hash(path) not in seen:
                        seen.add(hash(path))
                        yield source

    def _entries_on(self, listing: Entry) -> Iterator[str]:
        """Yield the entries of a list. Raise ValueError for an entry with credentials."""
        for number, uri in enumerate(list_entries(self.folder, listing.name), start=1):
            if holds_secret(uri):
                raise ValueError(
                    f"input_dir {self.uri}: entry {number} holds a query or a password, which the dataset would store: "
                    "list URIs without credentials, and set the credentials in environment variables"
                )
            yield uri

    def _resolved(self, entry: str) -> tuple[Source, str, str | None]:
        """Return the source of a list entry, the path of its file, and its kind if it is skipped, else None."""
        source = self.look_up(entry)
        folder, name = self.locate(source.uri)
        path = folder.path(name)
        root = f"{self.folder.root.rstrip('/')}/"
        kind = hidden_kind(PurePosixPath(path.removeprefix(root) if path.startswith(root) else f"/{path}"))
        extension = PurePosixPath(source.uri.strip()).suffix.lower()
        if kind is None and source.version != "folder" and extension not in AUDIO_EXTENSIONS | CONTAINER_EXTENSIONS:
            kind = kind_of(source.uri)
        if kind is None and source.extension == ".parquet" and source.version not in UNREADABLE:
            self._may_hold_audio(source.uri)  # counts rows without audio
        return source, path, kind

    def _permission_error(self, error: PermissionError) -> ValueError:
        return ValueError(
            f"input_dir {self.uri}: cannot be read ({error.strerror or error}): grant access, or use another folder"
        )


def _listed(entry: Entry) -> Source:
    """Return the source of a file in the input folder."""
    name = utf8(entry.name)
    version = entry.version if name == entry.name else "not utf-8"
    return Source(name, entry.size, "elsewhere" if is_absolute(name) else version)


def _batches(items: Iterable[ItemT]) -> Iterator[list[ItemT]]:
    remaining = iter(items)
    while batch := list(islice(remaining, 16 * CONCURRENT_REQUESTS)):
        yield batch
