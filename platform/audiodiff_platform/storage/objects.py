"""Objects of stores: listed, many prefixes at a time where there is more than a page of them, and removed.

1. A first page tells whether there are more.
2. The folders on the way down are listed one level at a time, until there are enough of them.
3. All objects below each of these folders are listed, many folders at a time.

Names are relative to `root`. They come in the store's order, that of their bytes.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from audiodiff_platform.storage.listing import Entry, entry_on_store

CONCURRENT_REQUESTS = 32
LEVELS_AT_MOST = 4
FOLDERS_AT_MOST = 20_000  # of a level: a request for each; what comes behind is listed page by page
LISTED_AHEAD = 8 * CONCURRENT_REQUESTS
LAST_CHARACTER = "\U0010ffff"
S3_KEYS_PER_REQUEST = 1_000


@dataclass(frozen=True)
class _Range:
    """The objects whose names begin with a prefix, or those of them behind `after`."""

    prefix: str
    after: str = ""

    @property
    def name(self) -> str:
        return self.prefix


@dataclass(frozen=True)
class _Page:
    """A page of a listing: objects, and folders if it is a listing of one level."""

    entries: list[Entry]
    folders: list[_Range]
    more: bool


_Pages = Callable[[_Range, bool], Iterator[_Page]]
"""Lists a range, deep or one level of it."""


def objects(filesystem: Any, root: str, folder: str = "", *, deep: bool = True) -> Iterator[Entry]:
    """All objects below a folder of `root`, or only those directly in it.

    Markers of empty folders have names that end in a slash.
    """
    whole = _Range(f"{folder}/" if folder else "")
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
        yield from _below(pages, whole)
    else:
        yield from (entry for page in pages(whole, False) for entry in page.entries)


def _below(pages: _Pages, whole: _Range) -> Iterator[Entry]:
    first = next(pages(whole, True))
    if not first.more:
        yield from first.entries
        return
    pool = ThreadPoolExecutor(CONCURRENT_REQUESTS)
    waiting: deque[Entry | Future[list[Entry]]] = deque()
    try:
        for found in _spread(pages, whole, pool):
            waiting.append(found if isinstance(found, Entry) else pool.submit(_listed, pages, found))
            while len(waiting) > LISTED_AHEAD or (waiting and isinstance(waiting[0], Entry)):
                yield from _finished(waiting.popleft())
        while waiting:
            yield from _finished(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _spread(pages: _Pages, whole: _Range, pool: ThreadPoolExecutor) -> list[Entry | _Range]:
    """Objects, and folders that hold the others: enough to be listed at a time, if there are so many."""
    found: list[Entry | _Range] = [whole]
    for _ in range(LEVELS_AT_MOST):
        folders = [item for item in found if isinstance(item, _Range)]
        levels = dict(zip(folders, pool.map(partial(_level, pages), folders), strict=True))
        found = [inside for item in found for inside in (levels[item] if isinstance(item, _Range) else [item])]
        if not 0 < sum(isinstance(item, _Range) for item in found) < CONCURRENT_REQUESTS:
            break
    return found


def _level(pages: _Pages, folder: _Range) -> list[Entry | _Range]:
    """The objects directly in a folder, and the folders in it; behind so many of them, one range."""
    if folder.after:
        return [folder]
    level: list[Entry | _Range] = []
    folders = 0
    for page in pages(folder, False):
        both: list[Entry | _Range] = [*page.entries, *page.folders]
        inside = sorted(both, key=lambda item: item.name)
        folders += len(page.folders)
        if page.more and page.folders and folders >= FOLDERS_AT_MOST:
            last = page.folders[-1].prefix
            return [
                *level,
                *(item for item in inside if item.name <= last),
                _Range(folder.prefix, last + LAST_CHARACTER),
            ]
        level += inside
    return level


def _listed(pages: _Pages, folder: _Range) -> list[Entry]:
    return [entry for page in pages(folder, True) for entry in page.entries]


def _finished(found: "Entry | Future[list[Entry]]") -> list[Entry]:
    return [found] if isinstance(found, Entry) else found.result()


def _pages_of_s3(filesystem: Any, root: str, within: _Range, deep: bool) -> Iterator[_Page]:
    bucket, place = _place(root)
    request = {"Bucket": bucket, "Prefix": place + within.prefix}
    request |= {"Delimiter": "/"} if not deep else {}
    request |= {"StartAfter": place + within.after} if within.after else {}
    while request:
        page = filesystem.call_s3("list_objects_v2", **request)
        more = bool(page.get("IsTruncated"))
        request = {**request, "ContinuationToken": page["NextContinuationToken"]} if more else {}
        found = page.get("Contents", [])
        entries = [entry_on_store(details["Key"][len(place) :], details["Size"], details) for details in found]
        folders = [_Range(prefix["Prefix"][len(place) :]) for prefix in page.get("CommonPrefixes", [])]
        yield _Page(entries, folders, more)


def _pages_of_gcs(filesystem: Any, root: str, within: _Range, deep: bool) -> Iterator[_Page]:
    bucket, place = _place(root)
    request = {"prefix": (place + within.prefix) or None, "pageToken": None}
    request |= {"delimiter": "/"} if not deep else {}
    request |= {"startOffset": place + within.after} if within.after else {}
    more = True
    while more:
        page = filesystem.call("GET", "b/{}/o", bucket, json_out=True, **request)
        more = "nextPageToken" in page
        request["pageToken"] = page.get("nextPageToken")
        found = page.get("items", [])
        entries = [entry_on_store(details["name"][len(place) :], details["size"], details) for details in found]
        yield _Page(entries, [_Range(prefix[len(place) :]) for prefix in page.get("prefixes", [])], more)


def remove_from_s3(filesystem: Any, paths: Sequence[str]) -> None:
    """Remove objects of one bucket; raises OSError that names one that stays."""
    for first in range(0, len(paths), S3_KEYS_PER_REQUEST):
        batch = [path.partition("/") for path in paths[first : first + S3_KEYS_PER_REQUEST]]
        keys = {"Objects": [{"Key": key} for _, _, key in batch], "Quiet": True}
        for error in filesystem.call_s3("delete_objects", Bucket=batch[0][0], Delete=keys).get("Errors", []):
            raise OSError(f"s3://{batch[0][0]}/{error.get('Key')} cannot be removed: {error.get('Message')}")


def _place(root: str) -> tuple[str, str]:
    """The bucket, and what names in it have before those relative to `root`."""
    bucket, _, key = root.partition("/")
    return bucket, f"{key}/" if key else ""
