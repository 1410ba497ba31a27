"""The audio files of a source: one, or those of a container (tar shard, Parquet), which are named `CONTAINER/MEMBER`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from audiodiff_platform.audio_files import parquet_rows, tar_shards
from audiodiff_platform.audio_files.item import AudioItem
from audiodiff_platform.audio_files.source import Source


def items(source: Source, local: Path, scratch: Path, skipped: Counter[str] | None = None) -> Iterator[AudioItem]:
    """The audio files of a source, each to be read before the next is requested.

    What a container holds besides is counted in `skipped`. Raises AudioDecodeError, also after some items, where a
    container cannot be read on.
    """
    match source.extension:
        case ".tar":
            yield from tar_shards.members(source, local, scratch, Counter() if skipped is None else skipped)
        case ".parquet":
            yield from parquet_rows.rows(source, local, scratch, Counter() if skipped is None else skipped)
        case _:
            yield AudioItem(source.uri, local)
