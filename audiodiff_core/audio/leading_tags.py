"""Audio files behind tags that decoders do not expect before their format."""

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
    """`file` without the tags at its start, by which libsndfile would end too early. MP3 and AAC files keep theirs.

    Raises UnusableError for a file that cannot be opened.
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
    """Size of the tags before a format that begins with a known magic number or with an MP4 box, 0 for other files."""
    try:
        if isinstance(file, str) and not stat.S_ISREG(os.stat(file).st_mode):
            raise UnusableError("not a regular file")
        with opened(file) as content:
            start = leading_tags_size(content)
            content.seek(start)
            magic, kind = content.read(4), content.read(4)
            content.seek(0)  # the place where decoders begin
    except OSError as error:
        if error.errno in MACHINE_ERRORS:
            raise
        raise UnusableError(f"cannot be opened ({error.strerror})") from error
    is_box = kind.isalpha() and kind.islower()
    return start if magic in FILE_STARTS or magic == EBML_HEADER or is_box else 0
