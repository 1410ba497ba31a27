"""Local folders for unfinished files, which outlive a killed process no longer than until the next worker starts.

    PARENT/audiodiff-scratch-HOST-XXXXXXXX/lock    locked by the process while it lives
    PARENT/audiodiff-scratch-HOST-XXXXXXXX/files   the unfinished files

The lock tells a process that is gone from one that lives, also in another container of the machine. The name tells the
machine, because locks on some shared folders do not reach another one.
"""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK, FILES = "lock", "files"


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder in `parent`, by default in the system's place for temporary files; it is gone at the end."""
    place = Path(tempfile.gettempdir()) if parent is None else parent
    place.mkdir(parents=True, exist_ok=True)
    folder, lock = _new(place)
    try:
        yield folder / FILES
    finally:
        shutil.rmtree(folder / FILES, ignore_errors=True)
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the scratch folders in `parent` that processes of this user on this machine left when they were killed."""
    if not parent.is_dir():
        return
    with os.scandir(parent) as entries:
        named = [entry for entry in entries if f"{entry.name.rpartition('-')[0]}-" == _prefix()]
    for entry in named:
        if _is_own_folder(entry) and (lock := _locked(Path(entry.path))) is not None:
            shutil.rmtree(entry.path, ignore_errors=True)
            os.close(lock)


def _new(place: Path) -> tuple[Path, int]:
    """A new folder and the descriptor of its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(), dir=place))
        lock = _locked(folder)
        if lock is not None:  # else another process took the folder, which was not locked yet, for an abandoned one
            (folder / FILES).mkdir()
            return folder, lock


def _locked(folder: Path) -> int | None:
    """The descriptor of the folder's lock, which this process then holds; None if another holds it, or removed it."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


def _is_own_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    except FileNotFoundError:  # removed meanwhile
        return False


def _prefix() -> str:
    return f"audiodiff-scratch-{socket.gethostname()}-"
