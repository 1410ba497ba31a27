"""Concurrent listing and removal of objects on S3 and GCS.

A listing that has more than one page is split into folders, that is, prefixes that end in a slash:

1. The first page shows that there are more pages.
2. Folders are listed one level at a time, until there are enough folders to list concurrently.
3. All objects below each of these folders are listed, many folders at a time.

Names are relative to `root`. They are in the order of the store, which sorts names by their bytes.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from audiodiff_platform.storage.listing import Entry, entry_on_store

CONCURRENT_REQUESTS = 32
MAX_LEVELS = 4
MAX_FOLDERS = 20_000  # of one folder, each listed by a request; objects that sort after them are listed page by page
MAX_WAITING = 8 * CONCURRENT_REQUESTS
LAST_CHARACTER = "\U0010ffff"
S3_KEYS_PER_REQUEST = 1_000


@dataclass(frozen=True)
class _Range:
    """The objects whose names begin with `prefix` and sort after `after`."""

    prefix: str
    after: str = ""

    @property
    def name(self) -> str:
        return self.prefix


@dataclass(frozen=True)
class _Page:
    """A page of a listing: objects and, in a listing of one level, folders."""

    entries: list[Entry]
    folders: list[_Range]
    more: bool


_Pages = Callable[[_Range, bool], Iterator[_Page]]
"""A function that lists a range in pages. If its second argument is True, it lists all levels, else one level."""


def objects(filesystem: Any, root: str, folder: str = "", *, deep: bool = True) -> Iterator[Entry]:
    """Yield the objects in a folder.

    Args:
        filesystem: The fsspec filesystem of the store.
        root: The path of the bucket or folder that names are relative to.
        folder: The name of the folder in `root`.
        deep: Include the objects in subfolders.

    Yields:
        The objects. The names of objects that mark empty folders end in a slash.
    """
    top = _Range(f"{folder}/" if folder else "")
    match filesystem.protocol:
        case "s3" | ("s3", *_):
            pages: _Pages = partial(_pages_of_s3, filesystem, root)
        case "gs" | "gcs" | ("gs" | "gcs", *_):
            pages = partial(_pages_of_gcs, filesystem, root)
        case _:
            files = filesystem.find(f"{root}/{folder}".rstrip("/"), maxdepth=None if deep else 1, detail=True)
            for path, details in sorted(files.items()):
                yield entry_on_store(path[len(root) + 1 :], details["size"], details)
            return
    if deep:
        yield from _deep(pages, top)
    else:
        yield from (entry for page in pages(top, False) for entry in page.entries)


def _deep(pages: _Pages, top: _Range) -> Iterator[Entry]:
    first = next(pages(top, True))
    if not first.more:
        yield from first.entries
        return
    pool = ThreadPoolExecutor(CONCURRENT_REQUESTS)
    waiting: deque[Entry | Future[list[Entry]]] = deque()
    try:
        for item in _split(pages, top, pool):
            waiting.append(item if isinstance(item, Entry) else pool.submit(_listed, pages, item))
            while len(waiting) > MAX_WAITING or (waiting and isinstance(waiting[0], Entry)):
                yield from _result(waiting.popleft())
        while waiting:
            yield from _result(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _split(pages: _Pages, top: _Range, pool: ThreadPoolExecutor) -> list[Entry | _Range]:
    """Return the objects of the upper levels, and the folders that contain all other objects.

    The levels are listed until there are CONCURRENT_REQUESTS folders or more.
    """
    items: list[Entry | _Range] = [top]
    for _ in range(MAX_LEVELS):
        folders = [item for item in items if isinstance(item, _Range)]
        levels = dict(zip(folders, pool.map(partial(_level, pages), folders), strict=True))
        items = [child for item in items for child in (levels[item] if isinstance(item, _Range) else [item])]
        if not 0 < sum(isinstance(item, _Range) for item in items) < CONCURRENT_REQUESTS:
            break
    return items


def _level(pages: _Pages, folder: _Range) -> list[Entry | _Range]:
    """Return the objects and folders directly in a folder.

    All names that sort after the first MAX_FOLDERS folders form one range.
    """
    if folder.after:
        return [folder]
    level: list[Entry | _Range] = []
    folders = 0
    for page in pages(folder, False):
        items: list[Entry | _Range] = [*page.entries, *page.folders]
        items.sort(key=lambda item: item.name)
        folders += len(page.folders)
        if page.more and page.folders and folders >= MAX_FOLDERS:
            last = page.folders[-1].prefix
            return [
                *level,
                *(item for item in items if item.name <= last),
                _Range(folder.prefix, last + LAST_CHARACTER),
            ]
        level += items
    return level


def _listed(pages: _Pages, folder: _Range) -> list[Entry]:
    return [entry for page in pages(folder, True) for entry in page.entries]


def _result(item: "Entry | Future[list[Entry]]") -> list[Entry]:
    return [item] if isinstance(item, Entry) else item.result()


def _pages_of_s3(filesystem: Any, root: str, within: _Range, deep: bool) -> Iterator[_Page]:
    bucket, prefix = _bucket_and_prefix(root)
    request = {"Bucket": bucket, "Prefix": prefix + within.prefix}
    request |= {"Delimiter": "/"} if not deep else {}
    request |= {"StartAfter": prefix + within.after} if within.after else {}
    while request:
        page = filesystem.call_s3("list_objects_v2", **request)
        more = bool(page.get("IsTruncated"))
        request = {**request, "ContinuationToken": page["NextContinuationToken"]} if more else {}
        contents = page.get("Contents", [])
        entries = [entry_on_store(details["Key"][len(prefix) :], details["Size"], details) for details in contents]
        folders = [_Range(folder["Prefix"][len(prefix) :]) for folder in page.get("CommonPrefixes", [])]
        yield _Page(entries, folders, more)


def _pages_of_gcs(filesystem: Any, root: str, within: _Range, deep: bool) -> Iterator[_Page]:
    bucket, prefix = _bucket_and_prefix(root)
    request = {"prefix": (prefix + within.prefix) or None, "pageToken": None}
    request |= {"delimiter": "/"} if not deep else {}
    request |= {"startOffset": prefix + within.after} if within.after else {}
    more = True
    while more:
        page = filesystem.call("GET", "b/{}/o", bucket, json_out=True, **request)
        more = "nextPageToken" in page
        request["pageToken"] = page.get("nextPageToken")
        contents = page.get("items", [])
        entries = [entry_on_store(details["name"][len(prefix) :], details["size"], details) for details in contents]
        yield _Page(entries, [_Range(folder[len(prefix) :]) for folder in page.get("prefixes", [])], more)


def remove_tree(filesystem: Any, root: str, name: str) -> None:
    """Remove the object `name` of `root`, and all objects below it, if they exist."""
    paths = [f"{root}/{entry.name}" for entry in objects(filesystem, root, name)]
    path = f"{root}/{name}" if name else root
    with suppress(FileNotFoundError):
        if filesystem.info(path)["type"] == "file":
            paths.append(path)
    remove_objects(filesystem, paths)


def remove_objects(filesystem: Any, paths: Sequence[str]) -> None:
    """Remove existing objects of one bucket by their exact paths.

    `filesystem.rm` is not used, because it expands paths as patterns.

    Raises:
        OSError: An object could not be removed.
    """
    match filesystem.protocol:
        case "s3" | ("s3", *_):
            _remove_from_s3(filesystem, paths)
        case _:
            with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
                list(pool.map(filesystem.rm_file, paths))


def _remove_from_s3(filesystem: Any, paths: Sequence[str]) -> None:
    for first in range(0, len(paths), S3_KEYS_PER_REQUEST):
        batch = [path.partition("/") for path in paths[first : first + S3_KEYS_PER_REQUEST]]
        keys = {"Objects": [{"Key": key} for _, _, key in batch], "Quiet": True}
        for error in filesystem.call_s3("delete_objects", Bucket=batch[0][0], Delete=keys).get("Errors", []):
            raise OSError(f"s3://{batch[0][0]}/{error.get('Key')} cannot be removed: {error.get('Message')}")


def _bucket_and_prefix(root: str) -> tuple[str, str]:
    """Return the bucket of `root`, and the prefix of all keys below `root`."""
    bucket, _, key = root.partition("/")
    return bucket, f"{key}/" if key else ""
