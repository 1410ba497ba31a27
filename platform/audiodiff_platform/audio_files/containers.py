"""Containers of many audio files: tar shards (WebDataset) and Parquet files (Hugging Face).

An `Item` is one audio file, read from a local file; a container's are named `CONTAINER/MEMBER`.
"""

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.audio import AUDIO_EXTENSIONS, AudioDecodeError
from audiodiff_platform.audio_files.source import Source, utf8


@dataclass(frozen=True)
class Item:
    """An audio file: its name in the dataset, and where it can be read now."""

    name: str
    local: Path


class Archive(tarfile.TarFile):
    """A tar file, which keeps the headers that it has read in `members`."""

    members: list[tarfile.TarInfo]


def items(source: Source, local: Path, scratch: Path) -> Iterator[Item]:
    """The audio files of a source, each to be read before the next is asked for.

    Raises AudioDecodeError, also after some items, where a container cannot be read on.
    """
    match source.extension:
        case ".tar":
            yield from _members(source, local, scratch)
        case ".parquet":
            yield from _rows(source, local, scratch)
        case _:
            yield Item(source.uri, local)


def _members(source: Source, local: Path, scratch: Path) -> Iterator[Item]:
    try:
        with Archive.open(local, "r:") as archive:
            for member in archive:
                archive.members.clear()  # or a shard of many members would fill the memory with their headers
                extension = PurePosixPath(member.name).suffix.lower()
                if extension not in AUDIO_EXTENSIONS or not member.isreg() or member.issparse():
                    continue
                content = archive.extractfile(member)
                assert content is not None, "a regular member has content"
                target = scratch / f"item{extension}"
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
                yield Item(f"{source.uri}/{utf8(member.name)}", target)
    except tarfile.TarError as error:
        raise AudioDecodeError(source.uri, f"archive that cannot be read on ({error})") from error


def _rows(source: Source, local: Path, scratch: Path) -> Iterator[Item]:
    for number, (content, path) in enumerate(_cells(source, local)):
        extension = PurePosixPath(path).suffix.lower()
        target = scratch / f"item{extension if extension in AUDIO_EXTENSIONS else ''}"
        target.write_bytes(content)
        yield Item(f"{source.uri}/{number}" + (f"-{PurePosixPath(path).name}" if path else ""), target)


def _cells(source: Source, local: Path) -> Iterator[tuple[bytes, str]]:
    """Each row's audio and the name that it had, empty where there is none."""
    try:
        with pq.ParquetFile(local, buffer_size=1 << 20) as table:  # buffered, or a whole row group's audio would be in memory
            column = audio_column(table.schema_arrow)
            if column is None:
                raise AudioDecodeError(source.uri, "Parquet without an audio column")
            for batch in table.iter_batches(batch_size=1, columns=[column]):
                for cell in batch.column(0).to_pylist():
                    yield (cell["bytes"] or b"", cell["path"] or "") if isinstance(cell, dict) else (cell or b"", "")
    except (pa.ArrowException, OSError) as error:
        raise AudioDecodeError(source.uri, f"Parquet that cannot be read on ({' '.join(str(error).split())})") from error


def audio_column(schema: pa.Schema) -> str | None:
    """The column that Hugging Face's metadata calls audio, else one of that name; none where its type holds no bytes."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        stated = [name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == "Audio"]
    except (ValueError, KeyError, TypeError, AttributeError):  # the metadata is not that of datasets
        stated = []
    for name in [*stated, "audio"]:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
                return str(name)
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return str(name)
    return None
