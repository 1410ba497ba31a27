"""Folders on a local disk or on an object store (`s3://`, `gs://`), with atomic writes.

The client libraries of the stores retry throttled and broken requests with growing pauses. Errors that remain are
raised as OSError with the name of the object.
"""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from audiodiff_core.files.filesystems import filesystem_of
from audiodiff_platform.storage.atomic_files import create_file, replace_file
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
from audiodiff_platform.storage.objects import CONCURRENT_REQUESTS, objects, remove_objects, remove_tree
from audiodiff_platform.storage.scratch import scratch_folder
from audiodiff_platform.storage.store_errors import named_os_errors

CONCURRENT_UPLOADS = 8  # files, and parts of a file on S3


class Folder:
    """A folder on a local disk or on an object store.

    The methods take names relative to the folder, with forward slashes.

    Args:
        uri: A local path or a URI. The folder need not exist.

    Attributes:
        filesystem: The fsspec filesystem of the folder.
        root: The path of the folder in `filesystem`.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") or "/"
        # One stream for each object: s3fs does not resume a broken stream if it reads an object in several streams.
        options: dict[str, Any] = {"max_concurrency": 1} if uri.startswith("s3://") else {}
        if uri.startswith(("s3://", "s3a://")):  # botocore's default is ten connections
            options["config_kwargs"] = {"max_pool_connections": CONCURRENT_REQUESTS}
        self.filesystem, self.root = filesystem_of(self.uri, use_listings_cache=False, **options)

    @property
    def is_local(self) -> bool:
        """True for a folder on disk."""
        return "://" not in self.uri or self.uri.startswith("file://")

    @property
    def scheme(self) -> str:
        """The scheme of the folder's URI ("s3", "gs"), or "file"."""
        scheme = "file" if self.is_local else self.uri.partition("://")[0]
        return {"s3a": "s3", "gcs": "gs"}.get(scheme, scheme)

    def path(self, name: str) -> str:
        """Return the path of a file for `filesystem`: an absolute path, or BUCKET/KEY."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def exists(self, name: str = "") -> bool:
        """Return True if a file or a subfolder exists; without a name, if this folder exists."""
        with self.reached(name):
            return bool(self.filesystem.exists(self.path(name)))

    def is_folder(self) -> bool:
        """Return True if this folder exists and is not a file."""
        with self.reached(""):
            return bool(self.filesystem.isdir(self.root))

    def names(self, pattern: str) -> list[str]:
        """Return the sorted names of the files that match a glob pattern.

        `*` and `?` match within one part of a name. `**` matches any number of parts.
        """
        return sorted(entry.name for entry in self.files(pattern))

    def files(self, pattern: str) -> Iterator[Entry]:
        """Yield the files that match a glob pattern, with sizes and versions, in no order."""
        with self.reached(pattern):
            try:
                folder = fixed_folder(pattern)
                deep = "/" in pattern[len(folder) :].lstrip("/") or pattern.endswith("**")
                yield from (entry for entry in self._entries(folder, deep=deep) if matches(entry.name, pattern))
            except (FileNotFoundError, NotADirectoryError):  # the folder does not exist yet
                return

    def walk(self, passed_over: PassedOver | None = None) -> Iterator[Entry]:
        """Yield all files in the folder and its subfolders, in no order.

        Args:
            passed_over: Selects the folders to skip, and counts the skipped folders and files.
        """
        with self.reached(""):
            yield from self._entries("", passed_over)

    def _entries(self, folder: str, passed_over: PassedOver | None = None, *, deep: bool = True) -> Iterator[Entry]:
        if self.is_local:
            listing = DiskListing(self.root, passed_over)
            return listing.entries(folder) if deep else listing.files(folder)
        entries = objects(self.filesystem, self.root, folder, deep=deep)
        return without_hidden((entry for entry in entries if not entry.name.endswith("/")), passed_over)

    def entry(self, name: str) -> Entry:
        """Return the current entry of a file. Raise FileNotFoundError if the file does not exist."""
        if self.is_local:
            return entry_on_disk(name, os.stat(self.path(name)))
        with self.reached(name):
            details = self.filesystem.info(self.path(name))
        return entry_on_store(name, details["size"], details)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with self.reached(name):
            return bytes(self.filesystem.cat_file(self.path(name)))

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file. Raise ValueError if the file is not a JSON object."""
        content = self.read(name)
        try:
            value = json.loads(content)
        except ValueError as error:
            raise ValueError(f"{self.uri}/{name} is not a JSON object ({error})") from None
        if not isinstance(value, dict):
            raise ValueError(f"{self.uri}/{name} is not a JSON object")
        return value

    def read_all(self, pattern: str) -> dict[str, bytes]:
        """Return the contents of the files that match a glob pattern, by name."""
        names = self.names(pattern)
        with ThreadPoolExecutor(1 if self.is_local else CONCURRENT_REQUESTS) as pool:
            return dict(zip(names, pool.map(self.read, names), strict=True))

    def fetch(self, name: str, scratch: Path) -> Path:
        """Return the local path of a file: the file itself, or a copy in `scratch`."""
        if self.is_local:
            return Path(self.path(name))
        local = scratch / f"{uuid.uuid4().hex}{Path(name).suffix}"
        with self.reached(name):
            self.filesystem.get_file(self.path(name), str(local))
        return local

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes `start` to `stop - 1` of a file. Raise OSError if the file is shorter."""
        with self.reached(name):
            content = bytes(self.filesystem.cat_file(self.path(name), start=start, end=stop))
        if len(content) != stop - start:
            raise OSError(f"{self.uri}/{name}: read {len(content):,} of {stop - start:,} bytes from byte {start:,}")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file atomically."""
        if self.is_local:
            replace_file(Path(self.path(name)), content)
            return
        with self.reached(name):
            self.filesystem.pipe_file(self.path(name), content)

    def create_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file that does not exist yet.

        Raises:
            FileExistsError: The file exists with other content.
        """
        if not self.create(name, _json(content)) and self.read(name) != _json(content):
            raise FileExistsError(f"{self.uri}/{name} exists with other content")

    def create(self, name: str, content: bytes) -> bool:
        """Write a file that does not exist yet, atomically.

        Returns:
            False if the file exists. On an object store, this call may have written it: if the response of the store
            is lost, the client retries the write and finds the file.
        """
        if self.is_local:
            return create_file(Path(self.path(name)), content)
        try:
            with self.reached(name):
                self.filesystem.pipe_file(self.path(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write or replace a JSON file atomically."""
        self.write(name, _json(content))

    def move_in(self, local_file: str | Path, name: str) -> None:
        """Move a complete local file into the folder. On disk, both must be on the same filesystem."""
        if not self.is_local:
            self._put(local_file, name)
            os.unlink(local_file)
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(local_file, target)

    def download(self, name: str, target: Path) -> None:
        """Copy the subfolder `name` with all its files to the local folder `target`."""
        for entry in Folder(f"{self.uri}/{name}").walk():
            (target / entry.name).parent.mkdir(parents=True, exist_ok=True)
            with self.reached(f"{name}/{entry.name}"):
                self.filesystem.get_file(self.path(f"{name}/{entry.name}"), str(target / entry.name))

    def upload(self, source: Path, name: str) -> None:
        """Copy the files of the local folder `source` to the subfolder `name`, several at a time, in no order."""
        files = [file for file in source.iterdir() if file.is_file()]
        with ThreadPoolExecutor(CONCURRENT_UPLOADS) as pool:
            list(pool.map(lambda file: self._put(file, f"{name}/{file.name}"), files))

    def _put(self, local_file: str | Path, name: str) -> None:
        # s3fs splits a large file into parts. The limit of one stream in `filesystem` is for reading.
        options: dict[str, Any] = {"max_concurrency": CONCURRENT_UPLOADS} if self.scheme == "s3" else {}
        with self.reached(name):
            self.filesystem.put_file(str(local_file), self.path(name), **options)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its contents, if it exists."""
        if not self.is_local:
            with self.reached(name):
                remove_tree(self.filesystem, self.root, name)
            return
        path = self.path(name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif self.exists(name):
            os.remove(path)

    def remove_files(self, names: Sequence[str]) -> None:
        """Remove existing files. On a disk, some may vanish meanwhile. A store removes many with one request."""
        if self.is_local:
            for name in names:
                Path(self.path(name)).unlink(missing_ok=True)
            return
        with self.reached(names[0] if names else ""):
            remove_objects(self.filesystem, [self.path(name) for name in names])

    def reached(self, name: str) -> AbstractContextManager[None]:
        """Return a context that converts errors of the store's client to OSError with the file's address."""
        return nullcontext() if self.is_local else named_os_errors(f"{self.uri}/{name}", self.root)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a local folder for unfinished files, and remove it at the end."""
        with scratch_folder(self.scratch_parent) as folder:
            yield folder

    @property
    def scratch_parent(self) -> Path:
        """The parent of scratch folders: `_tmp` in a local folder, else the system's temporary folder."""
        return Path(self.path("_tmp")) if self.is_local else Path(tempfile.gettempdir())

    def require_free_space(self, needed_bytes: int, what: str) -> None:
        """Require free space on the disk of a local folder. Object stores have no limit.

        Args:
            needed_bytes: The free space to require.
            what: The data to write, for the error message.

        Raises:
            ValueError: The disk has less free space.
        """
        if not self.is_local:
            return
        existing = Path(self.root)
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        if free < needed_bytes:
            raise ValueError(
                f"{self.uri}: {what} needs about {needed_bytes / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free: "
                "free more space or use another disk"
            )


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
