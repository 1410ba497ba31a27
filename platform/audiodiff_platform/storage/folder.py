"""Folders on local disk and on object stores (`s3://`, `gs://`) by one interface, with writes that are whole or absent.

The stores' clients try again, with growing pauses, where a store throttles or a connection breaks; what they cannot overcome is an
OSError that names the object.
"""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a folder: its name relative to it, its size in bytes, and what changes when its content does."""

    name: str
    size: int
    version: str


class Folder:
    """A folder by its URI. Names are relative to it and use forward slashes."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") or "/"
        if "://" in uri:
            # One stream an object: s3fs does not take up a broken one where it reads several.
            options = {"max_concurrency": 1} if uri.startswith("s3://") else {}
            self.filesystem, self.root = fsspec.url_to_fs(self.uri, use_listings_cache=False, **options)
        else:  # a local name may hold '::', which fsspec would take for a chain of filesystems
            self.filesystem, self.root = fsspec.filesystem("file"), os.path.abspath(Path(self.uri).expanduser())

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri or self.uri.startswith("file://")

    def path(self, name: str) -> str:
        """What the filesystem calls `name`: for a local folder, an absolute path."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def exists(self, name: str = "") -> bool:
        with self._reached(name):
            return bool(self.filesystem.exists(self.path(name)))

    def is_folder(self) -> bool:
        with self._reached(""):
            return bool(self.filesystem.isdir(self.root))

    def names(self, pattern: str) -> list[str]:
        """The files that match a glob pattern, sorted, relative to the folder."""
        with self._reached(pattern):
            found = self.filesystem.glob(self.path(pattern), detail=True)
        return sorted(path[len(self.root) + 1 :] for path, entry in found.items() if entry["type"] == "file")

    def walk(self) -> Iterator[Entry]:
        """All files in the folder and below, in no order, a page at a time: the memory is that of a page."""
        with self._reached(""):
            match self.filesystem.protocol:
                case "file" | ("file", *_):
                    yield from self._walk_disk(self.root)
                case "s3" | ("s3", *_):
                    yield from self._walk_s3()
                case "gs" | "gcs" | ("gs" | "gcs", *_):
                    yield from self._walk_gcs()
                case _:
                    for path, entry in self.filesystem.find(self.root, detail=True).items():
                        yield Entry(path[len(self.root) + 1 :], int(entry["size"]), _version(entry))

    def _walk_disk(self, directory: str) -> Iterator[Entry]:
        with os.scandir(directory) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk_disk(entry.path)
                elif entry.is_file():
                    yield _of_disk(os.path.relpath(entry.path, self.root), entry.stat())

    def _walk_s3(self) -> Iterator[Entry]:
        bucket, _, prefix = self.root.partition("/")
        request = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
        while request:
            page = self.filesystem.call_s3("list_objects_v2", **request)
            request = {**request, "ContinuationToken": page["NextContinuationToken"]} if page.get("IsTruncated") else {}
            for found in page.get("Contents", []):
                if not found["Key"].endswith("/"):
                    yield Entry(f"{bucket}/{found['Key']}"[len(self.root) + 1 :], found["Size"], _version(found))

    def _walk_gcs(self) -> Iterator[Entry]:
        bucket, _, prefix = self.root.partition("/")
        page: dict[str, Any] = {"nextPageToken": None}
        while "nextPageToken" in page:
            page = self.filesystem.call("GET", "b/{}/o", bucket, prefix=f"{prefix}/" if prefix else None, pageToken=page["nextPageToken"], json_out=True)
            for found in page.get("items", []):
                if not found["name"].endswith("/"):
                    yield Entry(f"{bucket}/{found['name']}"[len(self.root) + 1 :], int(found["size"]), _version(found))

    def entry(self, name: str) -> Entry:
        """A file as it is now; raises FileNotFoundError where there is none."""
        if self.is_local:
            return _of_disk(name, os.stat(self.path(name)))
        with self._reached(name):
            found = self.filesystem.info(self.path(name))
        return Entry(name, int(found["size"]), _version(found))

    def read(self, name: str) -> bytes:
        with self._reached(name):
            return bytes(self.filesystem.cat_file(self.path(name)))

    def read_json(self, name: str) -> dict[str, Any]:
        content = json.loads(self.read(name))
        if not isinstance(content, dict):
            raise ValueError(f"{self.uri}/{name} is not a JSON object")
        return content

    def read_all(self, pattern: str) -> dict[str, bytes]:
        """The files that match a glob pattern, by name; from an object store many at a time."""
        names = self.names(pattern)
        if self.is_local:
            return {name: self.read(name) for name in names}
        with self._reached(pattern):
            contents = self.filesystem.cat([self.path(name) for name in names]) if names else {}
        return {name: contents[self.path(name)] for name in names}

    def fetch(self, name: str, scratch: Path) -> Path:
        """The file as a local one: itself, or a copy in `scratch`."""
        if self.is_local:
            return Path(self.path(name))
        local = scratch / f"{uuid.uuid4().hex}{Path(name).suffix}"
        with self._reached(name):
            self.filesystem.get_file(self.path(name), str(local))
        return local

    def write(self, name: str, content: bytes) -> None:
        """Puts a whole file: locally by an atomic rename, on an object store by one put."""
        if not self.is_local:
            with self._reached(name):
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
        """Puts a whole JSON file where there is none; raises FileExistsError where there is another."""
        if not self._created(name, _json(content)) and self.read(name) != _json(content):
            raise FileExistsError(f"{self.uri}/{name} is there, and not what was to be put there")

    def _created(self, name: str, content: bytes) -> bool:
        """Puts a file where there is none; False where there is one, maybe this one: an answer may be lost, and the client try again."""
        if self.is_local:
            if self.exists(name):
                return False
            self.write(name, content)
            return True
        try:
            with self._reached(name):
                self.filesystem.pipe_file(self.path(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self.write(name, _json(content))

    def move_in(self, local_file: str | Path, name: str) -> None:
        """Makes a finished local file `name` of this folder; a local one must lie on the same disk."""
        if not self.is_local:
            with self._reached(name):
                self.filesystem.put_file(str(local_file), self.path(name))
            os.unlink(local_file)
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(local_file, target)

    def remove(self, name: str) -> None:
        """Removes a file or a folder with all in it; nothing happens where there is none."""
        if self.exists(name):
            with self._reached(name):
                self.filesystem.rm(self.path(name), recursive=True)

    @contextmanager
    def _reached(self, name: str) -> Iterator[None]:
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
        """A local folder for unfinished files, gone at the end: inside `_tmp` of a local folder, in the system's place for an object store."""
        parent = Path(self.path("_tmp")) if self.is_local else Path(tempfile.gettempdir())
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="audiodiff-", dir=parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def require_free_space(self, needed_bytes: int, what: str) -> None:
        """Raises ValueError where a local disk has less than `needed_bytes` free; object stores have no such bound."""
        if not self.is_local:
            return
        place = Path(self.root)
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if free < needed_bytes:
            raise ValueError(f"{self.uri}: {what} needs about {needed_bytes / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free: make room or choose another disk")


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _of_disk(name: str, status: os.stat_result) -> Entry:
    return Entry(name, status.st_size, str(status.st_mtime_ns))


def _version(found: dict[str, Any]) -> str:
    """What a store says that changes with an object's content."""
    for key in ("ETag", "etag", "blob_id", "mtime"):
        if found.get(key):
            return str(found[key]).strip('"')
    return ""
