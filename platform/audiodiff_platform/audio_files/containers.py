"""Audio files of a source: the file itself, or the members of a container (tar shard, Parquet file)."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from audiodiff_platform.audio_files import parquet_rows, tar_shards
from audiodiff_platform.audio_files.item import AudioItem
from audiodiff_platform.audio_files.source import Source


def items(source: Source, local: Path, scratch: Path, skipped: Counter[str] | None = None) -> Iterator[AudioItem]:
    """Yield the audio files of a source.

    The local file of a member exists only until the next member is requested.

    Args:
        source: An audio file, a container or a part of a container.
        local: The local file of the source.
        scratch: A local folder for the members of a container. Each member overwrites the previous member.
        skipped: A counter of the skipped members by kind, which is updated.

    Yields:
        The audio files. Members of a container are named `CONTAINER/MEMBER`.

    Raises:
        AudioDecodeError: The container is damaged. The members before the damage are yielded first.
    """
    match source.extension:
        case ".tar":
            yield from tar_shards.members(source, local, scratch, Counter() if skipped is None else skipped)
        case ".parquet":
            yield from parquet_rows.rows(source, local, scratch, Counter() if skipped is None else skipped)
        case _:
            yield AudioItem(source.uri, local)
