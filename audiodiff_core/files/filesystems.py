"""Filesystems of paths and URIs, in which every character of a name stands for itself."""

import os
from typing import Any

import fsspec

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs"})


def filesystem_of(uri: str, **options: Any) -> tuple[Any, str]:
    """Return the filesystem of a path or URI, and the name of the place in it.

    Unlike `fsspec.url_to_fs`, takes `::`, `#` and `?` in names on disk and on object stores literally, not as a chain
    or a version. `options` go to the client of a store.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(uri))
    if scheme == "file":
        return fsspec.filesystem("file"), os.path.abspath(rest)
    if scheme in OBJECT_STORES:
        return fsspec.filesystem(scheme, **options), rest.rstrip("/")
    filesystem, path = fsspec.url_to_fs(uri, **options)
    return filesystem, str(path)
