"""Files that requests name. The content of sources must not change while a folder grows.

    _plan/sources/NNNN.parquet  URI, size and version of the sources of `_plan/NNNN.parquet` that no earlier file lists

Workers record the SHA-256 of the sources of each shard (`work/source_digests.py`), so that files that were only touched
or restored are accepted. Plans of earlier versions list no sources: these are not compared.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from audiodiff_platform.audio_files import Source
from audiodiff_platform.audio_files.source_files import SourceFiles, locate, special_version
from audiodiff_platform.storage import Folder
from audiodiff_platform.work import plan_files
from audiodiff_platform.work.source_digests import first_changed, later_versions

_SCHEMA = pa.schema([("uri", pa.string()), ("size", pa.int64()), ("version", pa.string())])


def look_up(file: str) -> Source | str:
    """Return a file with its size and version, or the reason why it cannot be read."""
    try:
        folder, name = locate(file)
        entry = folder.entry(name)
        if special_version(folder, entry) is not None:
            return "is not a file"
        if folder.is_local:
            Path(folder.path(name)).open("rb").close()
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:
        return " ".join(str(getattr(error, "strerror", None) or error).split())
    return Source(file, entry.size, entry.version)


def file_version(source: Source) -> str:
    """Return size and version of the file of a condition as one text."""
    return f"{source.size} {source.version}"


def require_unchanged(folder: Folder, present: Mapping[str, Source], generation: int) -> Collection[str]:
    """Require that no planned source has changed.

    Args:
        folder: Output folder.
        present: The present sources of the job. A source that no request names any more is not compared.
        generation: Number of plan files.

    Returns:
        The URIs of all planned sources.

    Raises:
        ValueError: A source has changed.
    """
    planned: set[str] = set()
    versions = later_versions(folder)
    touched: list[Source] = []
    for source in _planned(folder, generation):
        planned.add(source.uri)
        current = present.get(source.uri)
        if current is None or current.version == versions.get(source.uri, source.version):
            continue
        if current.size != source.size:
            raise _changed(folder, source)
        touched.append(current)
    if touched and (changed := first_changed(folder, [(None, source) for source in touched], SourceFiles(Folder("/")))):
        raise _changed(folder, changed)
    return planned


def append_sources(folder: Folder, sources: Iterable[Source], generation: int) -> None:
    """Write the sources of a plan file that is not written yet."""
    rows = [{"uri": source.uri, "size": source.size, "version": source.version} for source in sources]
    if rows:
        folder.write(_name(generation), plan_files.content(rows, _SCHEMA))


def _planned(folder: Folder, generation: int) -> Iterator[Source]:
    """Yield the sources of the plan files. Those of a plan file that an interrupted job did not write are left out."""
    written = {_name(number) for number in range(generation)}
    for name in folder.names("_plan/sources/*.parquet"):
        if name in written:
            for row in plan_files.file_rows(folder, name):
                yield Source(row["uri"], row["size"], row["version"])


def _name(generation: int) -> str:
    return f"_plan/sources/{generation:04d}.parquet"


def _changed(folder: Folder, source: Source) -> ValueError:
    return ValueError(
        f"{source.uri} has changed since it was planned for {folder.uri}: restore it, or use another folder"
    )
