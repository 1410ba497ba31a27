"""Placeholder sizes in the headers of WAV files."""

import re

_RIFF_SIZE = re.compile(r"^Length : (\d+)\nRIFF : (\d+)", re.MULTILINE)


def is_unfinished(log: str) -> bool:
    """Return True if the header of a WAV file was not updated after the samples were written.

    Args:
        log: Log of libsndfile for the file.
    """
    sizes = _RIFF_SIZE.search(log)
    return sizes is not None and (int(sizes[2]) + 8 < int(sizes[1]) or is_placeholder(int(sizes[2])))


def is_placeholder(size: int) -> bool:
    """Return True if a size in bytes is near 2 or 4 GiB, the values written before the size is known."""
    return min(abs(size - (1 << 31)), abs(size - (1 << 32))) <= 4_096
