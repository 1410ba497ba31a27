"""Scratch folders: local folders for unfinished files.

    PARENT/audiodiff-scratch-HOST-XXXXXXXX/lock    locked by the process while it runs
    PARENT/audiodiff-scratch-HOST-XXXXXXXX/files   the unfinished files

A killed process abandons its scratch folder. The next worker that starts removes the folder. The lock shows whether
the process still runs, even if it runs in another container of the same machine. Only scratch folders of the same host
are removed, because locks on some shared disks do not work across machines.
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
    """Yield a new empty folder, and remove it at the end.

    Args:
        parent: The folder to create the scratch folder in. Defaults to the system's folder for temporary files.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    parent.mkdir(parents=True, exist_ok=True)
    folder, lock = _new_folder(parent)
    try:
        yield folder / FILES
    finally:
        shutil.rmtree(folder / FILES, ignore_errors=True)
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the scratch folders that killed processes of this user on this machine left in `parent`."""
    if not parent.is_dir():
        return
    with os.scandir(parent) as entries:
        candidates = [entry for entry in entries if f"{entry.name.rpartition('-')[0]}-" == _prefix()]
    for entry in candidates:
        if _is_own_folder(entry) and (lock := _locked(Path(entry.path))) is not None:
            shutil.rmtree(entry.path, ignore_errors=True)
            os.close(lock)


def _new_folder(parent: Path) -> tuple[Path, int]:
    """Create a scratch folder. Return the folder and the descriptor of its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(), dir=parent))
        lock = _locked(folder)
        if lock is not None:  # if None, another process removed the folder as abandoned before it was locked
            (folder / FILES).mkdir()
            return folder, lock


def _locked(folder: Path) -> int | None:
    """Lock a scratch folder.

    Returns:
        The descriptor of the lock, or None if another process holds the lock or removed the folder.
    """
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
    except FileNotFoundError:  # another process removed the folder
        return False


def _prefix() -> str:
    return f"audiodiff-scratch-{socket.gethostname()}-"
