"""Access to the files of sources: look up, fetch, open and digest."""

import errno
import io
import os
import shutil
import stat
from pathlib import Path

from audiodiff_core.audio import AudioDecodeError
from audiodiff_platform.audio_files.lists import spellings, without_blanks
from audiodiff_platform.audio_files.ranges import StoredFile, fetch_part, source_sha256
from audiodiff_platform.audio_files.source import Source, changed_error
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.storage import Entry, Folder
from audiodiff_platform.storage.scratch import scratch_folder

UNREADABLE = {
    "missing": "no such file",
    "forbidden": "cannot be opened (Permission denied)",
    "not utf-8": "its name is not UTF-8: rename it",
    "elsewhere": "its name looks like a URI or an absolute path: rename it",
    "folder": "is a folder: list its files, or pass the folder as input_dir",
    "special": "is a device, pipe or socket, not a file",
}
"""Reasons why a planned source cannot be read, by the `version` of the source."""
_NO_SUCH_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})


class SourceFiles:
    """Files of sources, identified by their URIs.

    Args:
        folder: The input folder. Relative URIs are names in this folder.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def locate(self, uri: str) -> tuple[Folder, str]:
        """Return the folder of a URI, and the name of the file in that folder."""
        return locate(uri) if is_absolute(uri) else (self.folder, uri)

    def look_up(self, entry: str) -> Source:
        """Return the source of a list entry.

        The URI of the source is the first of the `spellings` that exists. If none of them exists or the file cannot be
        read, the version of the source is a key of UNREADABLE.
        """
        for uri in spellings(entry):
            folder, name = self.locate(uri)
            try:
                status = folder.entry(name)
                version = special_version(folder, status)
            except (OSError, ValueError) as error:  # ValueError: a name with a NUL character
                if isinstance(error, PermissionError):
                    return Source(uri, 0, "forbidden")
                if not isinstance(error, FileNotFoundError | ValueError) and error.errno not in _NO_SUCH_FILE:
                    raise
                continue
            return Source(uri, 0, version) if version else Source(uri, status.size, status.version)
        return Source(without_blanks(entry), 0, "missing")

    def fetch(self, source: Source, scratch: Path) -> Path:
        """Return a local file of a source: the file itself, or a copy in `scratch` of a remote file.

        A file with a later modification time than planned is accepted if its size is unchanged.

        Args:
            source: The file or part to fetch.
            scratch: A local folder for the copy.

        Raises:
            AudioDecodeError: The source cannot be read, and a retry would not help.
            JobError: The file has been removed or has another size.
            OSError: The disk of `scratch` has too little space.
        """
        if source.version in UNREADABLE:
            raise AudioDecodeError(source.uri, UNREADABLE[source.version])
        folder, name = self.locate(source.uri)
        try:
            entry = folder.entry(name)
        except FileNotFoundError as error:
            raise JobError(
                f"{source.uri} was planned and has vanished: restore it, or set another output_dir"
            ) from error
        if entry.size != source.size:
            raise changed_error(source)
        if not folder.is_local:
            _require_space(source, scratch)
        try:
            local = (
                folder.fetch(name, scratch)
                if source.part is None
                else fetch_part(folder, name, source, source.part, scratch)
            )
            with local.open("rb"):
                return local
        except PermissionError as error:  # concerns only this file, because `entry` has just read the folder
            raise AudioDecodeError(source.uri, f"cannot be opened ({error.strerror or error})") from error

    def open_file(self, source: Source) -> io.RawIOBase:
        """Open the complete file of a source for a few small reads. The size is not checked."""
        folder, name = self.locate(source.uri)
        return io.FileIO(folder.path(name)) if folder.is_local else StoredFile(folder, name, source.size)

    def sha256(self, source: Source) -> str | None:
        """Return the SHA-256 digest of a source in hexadecimal, or None if the source cannot be read."""
        with scratch_folder() as scratch:
            try:
                return source_sha256(source, self.fetch(source, scratch))
            except AudioDecodeError:
                return None


def is_absolute(uri: str) -> bool:
    """Return True for a URI with a scheme or an absolute path, False for a name in the input folder."""
    return "://" in uri or uri.startswith("/")


def locate(uri: str) -> tuple[Folder, str]:
    """Return the folder of an absolute path or URI, and the name of the file in that folder."""
    parent, _, name = uri.rpartition("/")
    return Folder(parent or "/"), name


def special_version(folder: Folder, entry: Entry) -> str | None:
    """Return the key of UNREADABLE for a folder or a special file, or None for a regular file."""
    path = folder.path(entry.name)
    if not folder.is_local:
        return "folder" if entry.size == 0 and folder.filesystem.isdir(path) else None
    mode = os.stat(path).st_mode
    return "folder" if stat.S_ISDIR(mode) else None if stat.S_ISREG(mode) else "special"


def _require_space(source: Source, scratch: Path) -> None:
    free = shutil.disk_usage(scratch).free
    if free < source.bytes:
        raise OSError(
            f"{source.uri}: {source.bytes / 1e6:,.0f} MB do not fit in {scratch}, {free / 1e6:,.0f} MB are free: "
            "free space there, or set TMPDIR to a larger disk"
        )
