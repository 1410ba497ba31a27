"""Atomic writes of files on a local disk.

A reader sees the complete new file, or the state before the write.
"""

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")


def is_temporary(name: str) -> bool:
    """Return True for the name of a temporary file of a write, which a killed process leaves behind."""
    return _TEMPORARY.fullmatch(name) is not None


def replace_file(target: Path, content: bytes) -> None:
    """Write or replace a file, atomically. Missing folders are created."""
    with _temporary_file(target, content) as temporary:
        os.replace(temporary, target)


def create_file(target: Path, content: bytes) -> bool:
    """Write a new file, atomically. Missing folders are created.

    Returns:
        False if the file exists already. The file is then unchanged.

    Raises:
        ValueError: The disk does not support hard links.
    """
    with _temporary_file(target, content) as temporary:
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise ValueError(
                f"{target.parent}: this disk does not support hard links ({error.strerror}), by which a job writes "
                "each of its records once: use a folder on another disk or on a store"
            ) from error
    return True


@contextmanager
def _temporary_file(target: Path, content: bytes) -> Iterator[Path]:
    """Yield a file with `content` in the folder of `target`, and remove it at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
