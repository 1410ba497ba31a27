"""Large containers in parts, which workers fetch and read apart: a tar by its members, Parquet by its row groups.

The parts of a container are ranges that hold all its bytes; a member or row group belongs to the part in which it begins.
A tar whose members depend on each other (links, names that occur twice, global headers), or that is damaged, stays whole;
so does Parquet whose row groups do not lie one after the other. Compressed tars are not read at all.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

from audiodiff_platform.audio_files import parquet_rows, tar_shards
from audiodiff_platform.audio_files.inputs import Inputs
from audiodiff_platform.audio_files.source import ByteRange, IndivisibleError, Source
from audiodiff_platform.entry.terminal import say

WHOLE_BYTES = 1 << 30
"""Containers up to this size stay whole: a core reads them in five minutes, and to divide a tar all its headers are read.
The usual WebDataset shards are as large."""
PART_BYTES = 256 << 20
"""About three hours of compressed audio, the most that a shard holds."""
CONTAINERS_AT_ONCE = 32


def in_parts(sources: Sequence[Source], inputs: Inputs) -> list[Source]:
    """The sources, with the parts of large containers in their places."""
    large = [source for source in sources if source.part is None and source.is_container and source.size > WHOLE_BYTES]
    if not large:
        return list(sources)
    say(f"{len(large):,} large containers: looking for the places where they can be divided")
    with ThreadPoolExecutor(CONTAINERS_AT_ONCE) as pool:
        parts = dict(zip(large, pool.map(partial(_parts, inputs), large), strict=True))
    return [part for source in sources for part in parts.get(source, [source])]


def _parts(inputs: Inputs, source: Source) -> list[Source]:
    starts = tar_shards.member_starts if source.extension == ".tar" else parquet_rows.row_group_starts
    bounds = [0]
    try:
        with inputs.opened(source) as file:
            for start in starts(file):
                if start - bounds[-1] >= PART_BYTES:
                    bounds.append(start)
    except (IndivisibleError, FileNotFoundError, PermissionError):
        return [source]  # the worker that reads it names what is wrong
    if len(bounds) == 1:
        return [source]
    return [
        Source(source.uri, source.size, source.version, ByteRange(*ends)) for ends in pairwise([*bounds, source.size])
    ]
