"""Filesystems for paths and URIs, with special characters in names taken literally."""

import os
from typing import Any

import fsspec

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs"})


def filesystem_of(uri: str, **options: Any) -> tuple[Any, str]:
    """Return the fsspec filesystem for a path or URI, and the path within it.

    `fsspec.url_to_fs` gives `::`, `#` and `?` a special meaning. This function takes them literally in names on disk
    and in object stores.

    Args:
        uri: A local path, in which `~` is expanded, or a URI of any filesystem that fsspec supports.
        **options: Options for the filesystem's client. Local filesystems ignore them.

    Returns:
        The filesystem and the path. The path is absolute for local files, and BUCKET/KEY for object stores.
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
