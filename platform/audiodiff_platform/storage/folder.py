"""Folders on local disk and on object stores (`s3://`, `gs://`) by one interface, with writes that are whole or absent.

The stores' clients try again, with growing pauses, where a store throttles or a connection breaks; what they cannot overcome is an
OSError that names the object.
"""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from audiodiff_core.files.filesystems import filesystem_of
from audiodiff_platform.storage.disk import DiskListing
from audiodiff_platform.storage.listing import (
    Entry,
    PassedOver,
    entry_on_disk,
    entry_on_store,
    fixed_folder,
    matches,
    without_hidden,
)
from audiodiff_platform.storage.objects import CONCURRENT_REQUESTS, objects, remove_from_s3
from audiodiff_platform.storage.scratch import scratch_folder

RANGE_BYTES = 16 << 20  # of a file that is fetched in part, in a request


class Folder:
    """A folder by its URI. Names are relative to it and use forward slashes."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") or "/"
        # One stream an object: s3fs does not take up a broken one where it reads several.
        options: dict[str, Any] = {"max_concurrency": 1} if uri.startswith("s3://") else {}
        if uri.startswith(("s3://", "s3a://")):  # of ten connections, which are botocore's default, others would wait
            options["config_kwargs"] = {"max_pool_connections": CONCURRENT_REQUESTS}
        self.filesystem, self.root = filesystem_of(self.uri, use_listings_cache=False, **options)

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri or self.uri.startswith("file://")

    @property
    def scheme(self) -> str:
        """The scheme of the folder's URI ("s3", "gs"), or "file"."""
        return (
            "file" if self.is_local else {"s3a": "s3", "gcs": "gs"}.get(scheme := self.uri.partition("://")[0], scheme)
        )

    def path(self, name: str) -> str:
        """What the filesystem calls `name`: for a local folder, an absolute path."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def exists(self, name: str = "") -> bool:
        with self.reached(name):
            return bool(self.filesystem.exists(self.path(name)))

    def is_folder(self) -> bool:
        with self.reached(""):
            return bool(self.filesystem.isdir(self.root))

    def names(self, pattern: str) -> list[str]:
        """List the files that match a glob pattern, sorted, by their names relative to the folder.

        `*` and `?` match within one part of a name.
        """
        return sorted(entry.name for entry in self.files(pattern))

    def files(self, pattern: str) -> list[Entry]:
        """List the files that match a glob pattern, with their sizes, in no order."""
        with self.reached(pattern):
            try:
                folder = fixed_folder(pattern)
                deep = "/" in pattern[len(folder) :].lstrip("/") or pattern.endswith("**")
                return [entry for entry in self._entries(folder, deep=deep) if matches(entry.name, pattern)]
            except (FileNotFoundError, NotADirectoryError):  # a folder on disk that does not exist yet
                return []

    def walk(self, passed_over: PassedOver | None = None) -> Iterator[Entry]:
        """All files in the folder and below, in no order; from a store a page at a time."""
        with self.reached(""):
            yield from self._entries("", passed_over)

    def _entries(self, folder: str, passed_over: PassedOver | None = None, *, deep: bool = True) -> Iterator[Entry]:
        if self.is_local:
            listing = DiskListing(self.root, passed_over)
            return listing.entries(folder) if deep else listing.files(folder)
        entries = objects(self.filesystem, self.root, folder, deep=deep)
        return without_hidden((entry for entry in entries if not entry.name.endswith("/")), passed_over)

    def entry(self, name: str) -> Entry:
        """A file as it is now; raises FileNotFoundError where there is none."""
        if self.is_local:
            return entry_on_disk(name, os.stat(self.path(name)))
        with self.reached(name):
            details = self.filesystem.info(self.path(name))
        return entry_on_store(name, details["size"], details)

    def read(self, name: str) -> bytes:
        with self.reached(name):
            return bytes(self.filesystem.cat_file(self.path(name)))

    def read_json(self, name: str) -> dict[str, Any]:
        content = json.loads(self.read(name))
        if not isinstance(content, dict):
            raise ValueError(f"{self.uri}/{name} is not a JSON object")
        return content

    def read_all(self, pattern: str) -> dict[str, bytes]:
        """The files that match a glob pattern, by name; from an object store many at a time."""
        names = self.names(pattern)
        with ThreadPoolExecutor(1 if self.is_local else CONCURRENT_REQUESTS) as pool:
            return dict(zip(names, pool.map(self.read, names), strict=True))

    def fetch(self, name: str, scratch: Path) -> Path:
        """The file as a local one: itself, or a copy in `scratch`."""
        if self.is_local:
            return Path(self.path(name))
        local = scratch / f"{uuid.uuid4().hex}{Path(name).suffix}"
        with self.reached(name):
            self.filesystem.get_file(self.path(name), str(local))
        return local

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` up to `stop`."""
        with self.reached(name):
            content = bytes(self.filesystem.cat_file(self.path(name), start=start, end=stop))
        if len(content) != stop - start:
            raise OSError(
                f"{self.uri}/{name}: {len(content):,} bytes from byte {start:,} on, {stop - start:,} were asked for"
            )
        return content

    def fetch_ranges(self, name: str, size: int, ranges: Iterable[tuple[int, int]], scratch: Path) -> Path:
        """A copy in `scratch` of a file of `size` bytes that has these ranges, and holes for the rest."""
        local = scratch / f"{uuid.uuid4().hex}{Path(name).suffix}"
        with local.open("wb") as file:
            file.truncate(size)
            for start, stop in ranges:
                for first in range(start, stop, RANGE_BYTES):
                    file.seek(first)
                    file.write(self.read_range(name, first, min(first + RANGE_BYTES, stop)))
        return local

    def write(self, name: str, content: bytes) -> None:
        """Puts a whole file: locally by an atomic rename, on an object store by one put."""
        if not self.is_local:
            with self.reached(name):
                self.filesystem.pipe_file(self.path(name), content)
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def create_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file that is absent.

        Raises:
            FileExistsError: A file with another content is there.
        """
        if not self.create(name, _json(content)) and self.read(name) != _json(content):
            raise FileExistsError(f"{self.uri}/{name} is there, and not what was to be put there")

    def create(self, name: str, content: bytes) -> bool:
        """Write a file that is absent, whole or not at all.

        Returns:
            False if a file is there. It may be this one: a store's answer can be lost, and its client tries again.
        """
        if not self.is_local:
            try:
                with self.reached(name):
                    self.filesystem.pipe_file(self.path(name), content, mode="create")
            except FileExistsError:
                return False
            return True
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            temporary.write_bytes(content)
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self.write(name, _json(content))

    def move_in(self, local_file: str | Path, name: str) -> None:
        """Makes a finished local file `name` of this folder; a local one must lie on the same disk."""
        if not self.is_local:
            with self.reached(name):
                self.filesystem.put_file(str(local_file), self.path(name))
            os.unlink(local_file)
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(local_file, target)

    def download(self, name: str, target: Path) -> None:
        """Copy a folder with all files in it to a local one."""
        for entry in Folder(f"{self.uri}/{name}").walk():
            (target / entry.name).parent.mkdir(parents=True, exist_ok=True)
            with self.reached(f"{name}/{entry.name}"):
                self.filesystem.get_file(self.path(f"{name}/{entry.name}"), str(target / entry.name))

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all in it; nothing happens where there is none."""
        if not self.is_local:
            with self.reached(name):
                self._remove_objects(name)
            return
        path = self.path(name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif self.exists(name):
            os.remove(path)

    def remove_files(self, names: Sequence[str]) -> None:
        """Remove files that exist, from a store many in a request."""
        if self.is_local:
            for name in names:
                os.remove(self.path(name))
            return
        with self.reached(names[0] if names else ""):
            self._remove_named(names)

    def _remove_objects(self, name: str) -> None:
        """Remove an object and all below it."""
        names = [entry.name for entry in objects(self.filesystem, self.root, name)]
        with suppress(FileNotFoundError):
            if self.filesystem.info(self.path(name))["type"] == "file":
                names.append(name)
        self._remove_named(names)

    def _remove_named(self, names: Sequence[str]) -> None:
        """Remove objects by their exact names: `filesystem.rm` takes names for patterns."""
        if self.uri.startswith("s3"):
            remove_from_s3(self.filesystem, [self.path(entry) for entry in names])
            return
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
            list(pool.map(self.filesystem.rm_file, [self.path(entry) for entry in names]))

    @contextmanager
    def reached(self, name: str) -> Iterator[None]:
        """Gives the errors of a store's client, which come from five libraries, as an OSError that names the object."""
        try:
            yield
        except (FileNotFoundError, PermissionError) as error:
            if self.is_local or self.root in str(error):
                raise
            raise type(error)(f"{self.uri}/{name}: {error}") from error
        except OSError:
            raise
        except Exception as error:
            if self.is_local:
                raise
            raise OSError(f"{self.uri}/{name}: {type(error).__name__}: {' '.join(str(error).split())}") from error

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A local folder for unfinished files, gone at the end."""
        with scratch_folder(self.scratch_parent) as folder:
            yield folder

    @property
    def scratch_parent(self) -> Path:
        """The place of scratch folders: `_tmp` in a local folder, the system's place for one on an object store."""
        return Path(self.path("_tmp")) if self.is_local else Path(tempfile.gettempdir())

    def require_free_space(self, needed_bytes: int, what: str) -> None:
        """Raises ValueError where a local disk has less than `needed_bytes` free; object stores have no such bound."""
        if not self.is_local:
            return
        place = Path(self.root)
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if free < needed_bytes:
            raise ValueError(
                f"{self.uri}: {what} needs about {needed_bytes / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free: make room or choose another disk"
            )


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
