"""Folders on local disk and on object stores (`s3://`, `gs://`) by one interface, with writes that are whole or absent."""

import json
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import fsspec


class Folder:
    """A folder by its URI. Names are relative to it and use forward slashes."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") or "/"
        self.filesystem, self.root = fsspec.url_to_fs(self.uri, use_listings_cache=False)

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri or self.uri.startswith("file://")

    def path(self, name: str) -> str:
        """What the filesystem calls `name`: for a local folder, an absolute path."""
        return f"{self.root}/{name}" if name else self.root

    def exists(self, name: str = "") -> bool:
        return bool(self.filesystem.exists(self.path(name)))

    def names(self, pattern: str) -> list[str]:
        """The files that match a glob pattern, sorted, relative to the folder."""
        return sorted(found[len(self.root) + 1 :] for found in self.filesystem.glob(self.path(pattern)))

    def read(self, name: str) -> bytes:
        return bytes(self.filesystem.cat_file(self.path(name)))

    def read_json(self, name: str) -> dict[str, Any]:
        content = json.loads(self.read(name))
        if not isinstance(content, dict):
            raise ValueError(f"{self.uri}/{name} is not a JSON object")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Puts a whole file: locally by an atomic rename, on an object store by one put."""
        if not self.is_local:
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

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self.write(name, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())

    def move_in(self, local_file: str | Path, name: str) -> None:
        """Makes a finished local file `name` of this folder; a local one must lie on the same disk."""
        if not self.is_local:
            self.filesystem.put_file(str(local_file), self.path(name))
            os.unlink(local_file)
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(local_file, target)

    def remove(self, name: str) -> None:
        """Removes a file or a folder with all in it; nothing happens where there is none."""
        if self.exists(name):
            self.filesystem.rm(self.path(name), recursive=True)

    def scratch(self) -> Path:
        """A new local folder for unfinished files: inside `_tmp` of a local folder, in the system's place for an object store."""
        parent = Path(self.path("_tmp")) if self.is_local else Path(tempfile.gettempdir())
        folder = parent / f"audiodiff-{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        return folder

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
