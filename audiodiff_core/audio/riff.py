"""Stated sizes of WAV files."""

import re

_RIFF_SIZE = re.compile(r"^Length : (\d+)\nRIFF : (\d+)", re.MULTILINE)


def is_unfinished(log: str) -> bool:
    """True if libsndfile's log is that of a WAV file whose header was written before its samples, and left so."""
    sizes = _RIFF_SIZE.search(log)
    return sizes is not None and (int(sizes[2]) + 8 < int(sizes[1]) or is_placeholder(int(sizes[2])))


def is_placeholder(size: int) -> bool:
    """True if `size` in bytes is near 2 or 4 GiB, as programs write it before they know the size."""
    return min(abs(size - (1 << 31)), abs(size - (1 << 32))) <= 4_096
