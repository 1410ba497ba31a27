"""Removal of leading tags from audio files whose format does not allow leading tags."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from audiodiff_core.audio.blocks import AudioFile, opened
from audiodiff_core.audio.chunks import FILE_STARTS
from audiodiff_core.audio.file_parts import FileParts
from audiodiff_core.audio.formats import MACHINE_ERRORS, UnusableError
from audiodiff_core.audio.matroska import EBML_HEADER
from audiodiff_core.audio.tags import leading_tags_size


@contextmanager
def without_leading_tags(file: str | io.BytesIO) -> Iterator[AudioFile]:
    """Open a file without the tags at its start.

    With leading tags, libsndfile would stop decoding too early. MP3 and AAC files keep their tags, because decoders of
    these formats expect leading tags.

    Args:
        file: Path, or bytes in memory.

    Yields:
        The file, positioned at its start.

    Raises:
        UnusableError: The file cannot be opened, or is not a regular file.
    """
    start = _audio_start(file)
    if not start:
        yield file
        return
    with opened(file) as content:
        parts = FileParts(content, [(start, content.seek(0, os.SEEK_END))])
        content.seek(0)
        yield io.BufferedReader(parts)


def _audio_start(file: str | io.BytesIO) -> int:
    """Return the size in bytes of leading tags before a magic number or an MP4 box, 0 for other files."""
    try:
        if isinstance(file, str) and not stat.S_ISREG(os.stat(file).st_mode):
            raise UnusableError("not a regular file")
        with opened(file) as content:
            start = leading_tags_size(content)
            content.seek(start)
            magic, kind = content.read(4), content.read(4)
            content.seek(0)  # decoders start at the current position
    except OSError as error:
        if error.errno in MACHINE_ERRORS:
            raise
        raise UnusableError(f"cannot be opened ({error.strerror})") from error
    is_box = kind.isalpha() and kind.islower()
    return start if magic in FILE_STARTS or magic == EBML_HEADER or is_box else 0
