"""Recursive listing of a folder on disk that follows links and enters each real folder once."""

import errno
import heapq
import os
import stat
from collections.abc import Iterator

from audiodiff_platform.storage.listing import Entry, PassedOver, entry_on_disk

# Permanent errors of one folder or link. Other errors, such as errors of a failing disk, end the listing.
_UNREADABLE = frozenset({errno.EACCES, errno.EPERM, errno.ENAMETOOLONG})


class DiskListing:
    """A listing of the files in a folder and its subfolders, in no order.

    Real folders are listed first, then links to folders in the order of their names. The name of a file in the listing
    therefore does not depend on the order in which the disk lists folders. A link to a folder that contains the link is
    a cycle and is skipped.

    Args:
        root: The path of the folder.
        passed_over: Selects the folders to skip, and counts the skipped items. If None, a subfolder that cannot be
            read raises OSError. If the folder itself cannot be read, OSError is always raised.
    """

    def __init__(self, root: str, passed_over: PassedOver | None = None) -> None:
        self._root, self._passed_over = root, passed_over
        self._entered: set[tuple[int, int]] = set()
        self._links: list[str] = []  # heap of the names of links to folders

    def entries(self, folder: str = "") -> Iterator[Entry]:
        """Yield all files below a folder. Names are relative to the root."""
        yield from self._tree(folder, top=folder)
        while self._links:
            link = heapq.heappop(self._links)
            target = _identity(os.stat(self._path(link)))
            if self._contains(target, link):
                self._count("link cycles")
            elif target in self._entered:
                self._count("links to folders already listed")
            else:
                self._count("links followed")
                yield from self._tree(link, top=folder)

    def files(self, folder: str) -> Iterator[Entry]:
        """Yield the files directly in a folder. Names are relative to the root."""
        return self._files(folder, [])

    def _tree(self, start: str, top: str) -> Iterator[Entry]:
        """Yield the files of a folder and its real subfolders, and collect links to folders in `_links`."""
        waiting = [start]
        while waiting:
            folder = waiting.pop()
            subfolders: list[str] = []
            try:
                identity = _identity(os.stat(self._path(folder)))
                if identity not in self._entered:
                    self._entered.add(identity)
                    yield from self._files(folder, subfolders)
            except FileNotFoundError:  # removed after its parent was listed
                if folder == top:
                    raise
            except OSError as error:
                if folder == top or self._passed_over is None or error.errno not in _UNREADABLE:
                    raise
                self._count("unreadable folders")
                self._passed_over.unreadable.append(f"{folder} ({error.strerror})")
            waiting += sorted(subfolders, reverse=True)

    def _files(self, folder: str, subfolders: list[str]) -> Iterator[Entry]:
        """Yield the files directly in a folder, and append its real subfolders to `subfolders`."""
        with os.scandir(self._path(folder)) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_symlink():
                    status = self._target(entry, name)
                elif entry.is_dir():
                    if not self._hidden(entry.name):
                        subfolders.append(name)
                    continue
                else:
                    status = _status(entry)
                if status is None:
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield entry_on_disk(name, status)
                elif not stat.S_ISDIR(status.st_mode):
                    self._count("special files")
                elif not self._hidden(entry.name):
                    heapq.heappush(self._links, name)

    def _target(self, entry: os.DirEntry[str], name: str) -> os.stat_result | None:
        """Return the status of the target of a link. If the target is unreadable, count it and return None."""
        try:
            return entry.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._count("dangling links")
        except OSError as error:
            if error.errno == errno.ELOOP:
                self._count("link cycles")
            elif self._passed_over is None or error.errno not in _UNREADABLE:
                raise
            else:
                self._count("unreadable links")
                self._passed_over.unreadable.append(f"{name} ({error.strerror})")
        return None

    def _contains(self, target: tuple[int, int], link: str) -> bool:
        """Return True if the folder `target` is on the real path of the link or on its path in the listing."""
        parent = os.path.dirname(self._path(link))
        ancestors = {parent, os.path.realpath(parent)}
        for path in list(ancestors):
            while path != (path := os.path.dirname(path)):
                ancestors.add(path)
        return any(_identity(os.stat(path)) == target for path in ancestors)

    def _hidden(self, name: str) -> bool:
        if self._passed_over is None or not self._passed_over.hides(name):
            return False
        self._count("hidden folders")
        return True

    def _count(self, kind: str) -> None:
        if self._passed_over is not None:
            self._passed_over.counts[kind] += 1

    def _path(self, name: str) -> str:
        return os.path.join(self._root, name)


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except FileNotFoundError:  # removed after the folder was listed
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
