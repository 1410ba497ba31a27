"""Stated sizes of WAV files."""

import re

_RIFF_SIZE = re.compile(r"^Length : (\d+)\nRIFF : (\d+)", re.MULTILINE)


def is_unfinished(log: str) -> bool:
    """Whether libsndfile's log is that of a wav whose header was written before its samples, and left so."""
    sizes = _RIFF_SIZE.search(log)
    return sizes is not None and (int(sizes[2]) + 8 < int(sizes[1]) or is_placeholder(int(sizes[2])))


def is_placeholder(size: int) -> bool:
    """Whether `size` in bytes is what programs write where they do not know it yet: near 2 or 4 GiB."""
    return min(abs(size - (1 << 31)), abs(size - (1 << 32))) <= 4_096
