"""Division of large containers: tar shards between members, Parquet files between row groups.

Workers fetch and read parts independently. The parts of a container are consecutive ranges that cover all its bytes. A
member or row group belongs to the part in which it begins.

Some containers are never divided: damaged tar shards, tar shards whose members depend on each other (links, repeated
names, global headers), and Parquet files whose row groups are not stored in order.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

from audiodiff_platform.audio_files import parquet_rows, tar_shards
from audiodiff_platform.audio_files.inputs import Inputs
from audiodiff_platform.audio_files.source import ByteRange, IndivisibleError, Source
from audiodiff_platform.entry.terminal import say

MAX_UNDIVIDED_BYTES = 1 << 30
"""Maximum size of containers that are not divided. WebDataset shards usually have this size.

The division of smaller containers would gain little: one core reads a container of this size in five minutes, and the
division of a tar shard takes a pass over all headers.
"""
PART_BYTES = 256 << 20
"""Minimum size of a part: about three hours of compressed audio, the maximum duration of a shard."""
CONCURRENT_CONTAINERS = 32


def in_parts(sources: Sequence[Source], inputs: Inputs) -> list[Source]:
    """Divide large containers into parts.

    Args:
        sources: The sources to divide. Sources that are parts already are kept.
        inputs: The input that holds the sources.

    Returns:
        The sources, in which each large container is replaced by its parts.
    """
    large = [
        source
        for source in sources
        if source.part is None and source.is_container and source.size > MAX_UNDIVIDED_BYTES
    ]
    if not large:
        return list(sources)
    say(f"{len(large):,} large containers: reading their structure to divide them")
    with ThreadPoolExecutor(CONCURRENT_CONTAINERS) as pool:
        parts = dict(zip(large, pool.map(partial(_parts, inputs), large), strict=True))
    return [part for source in sources for part in parts.get(source, [source])]


def _parts(inputs: Inputs, source: Source) -> list[Source]:
    """Return the parts of a container, or the container itself if it cannot be divided."""
    starts = tar_shards.member_starts if source.extension == ".tar" else parquet_rows.row_group_starts
    bounds = [0]
    try:
        with inputs.open_file(source) as file:
            for start in starts(file):
                if start - bounds[-1] >= PART_BYTES:
                    bounds.append(start)
    except (IndivisibleError, FileNotFoundError, PermissionError):
        return [source]  # the worker that reads the container reports the error
    if len(bounds) == 1:
        return [source]
    return [
        Source(source.uri, source.size, source.version, ByteRange(*ends)) for ends in pairwise([*bounds, source.size])
    ]
