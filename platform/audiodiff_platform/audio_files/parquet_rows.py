"""Audio files in the rows of Parquet files (Hugging Face datasets).

A cell of an audio column holds a file (as bytes, or as a struct of `bytes` and `path`) or decoded samples (as a struct
of `array` and `sampling_rate`).
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.audio import AUDIO_EXTENSIONS, AudioDecodeError
from audiodiff_platform.audio_files.arrays import write_wav
from audiodiff_platform.audio_files.item import AudioItem
from audiodiff_platform.audio_files.source import IndivisibleError, Source, changed_error, hidden_kind

FIELDS = frozenset({"bytes", "path", "array", "sampling_rate"})
MAX_ROWS_CHECKED, MAX_CHECKED_BYTES = 1_000, 1 << 20
MAX_EMPTY_ROWS_CHECKED = 100_000  # the limit until a row with audio is found
READ_BUFFER_BYTES = 1 << 20  # without a buffer, pyarrow reads the audio of a complete row group into memory
# A few compressed bytes can expand to any number of equal bytes or samples. The memory for a column of a row group is
# limited to MIN_GROUP_BYTES or to GROUP_BYTES_PER_BYTE for each stored byte, whichever is larger.
MIN_GROUP_BYTES = 256 << 20
GROUP_BYTES_PER_BYTE = 64

NOT_EMBEDDED = "row has a path but no audio: embed the files in the Parquet file"


@dataclass(frozen=True)
class RowsWithoutAudio:
    """Result of a search for rows without audio in a Parquet file.

    Args:
        missing: The number of checked rows without audio.
        checked: The number of checked rows.
    """

    missing: int
    checked: int

    @property
    def are_all(self) -> bool:
        """True if no checked row holds audio."""
        return self.missing == self.checked


def rows(source: Source, local: Path, scratch: Path, skipped: Counter[str]) -> Iterator[AudioItem]:
    """Yield the audio files of a Parquet file.

    The local file of a row exists only until the next row is requested.

    Args:
        source: The Parquet file, or a part of it.
        local: The local file of the source.
        scratch: A local folder for the audio files. Each audio file overwrites the previous file.
        skipped: A counter of the skipped hidden files, which is updated.

    Yields:
        The audio files, named `CONTAINER/ROW` or `CONTAINER/ROW-FILE`.

    Raises:
        AudioDecodeError: The Parquet file is damaged or has no audio column.
    """
    for number, cell in _all_cells(source, local):
        path = _path(cell)
        if kind := hidden_kind(PurePosixPath(path)):
            skipped[kind] += 1
            continue
        yield _item(f"{source.uri}/{number}" + (f"-{PurePosixPath(path).name}" if path else ""), cell, path, scratch)


def audio_column(schema: pa.Schema) -> str | None:
    """Return the name of the audio column, or None if no column can hold audio.

    Columns are considered in this order: columns that the Hugging Face metadata declares as audio, the column `audio`,
    and columns of decoded samples.
    """
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        typed = {name: feature for name, feature in features.items() if isinstance(feature, dict)}
        stated = [name for name, feature in typed.items() if feature.get("_type") == "Audio"]
    except (ValueError, KeyError, TypeError, AttributeError):  # not metadata of the `datasets` library
        stated = []
    decoded = [field.name for field in schema if {"array", "sampling_rate"} <= _fields(field.type)]
    for name in [*stated, "audio", *decoded]:
        if name in schema.names:
            kind = schema.field(name).type
            if _is_binary(kind) or _fields(kind) & {"bytes", "path"} or {"array", "sampling_rate"} <= _fields(kind):
                return str(name)
    return None


def rows_without_audio(table: pq.ParquetFile, column: str) -> RowsWithoutAudio:
    """Count rows without audio in an audio column.

    The check stops after MAX_CHECKED_BYTES of audio or MAX_ROWS_CHECKED rows. If none of these rows holds audio, the
    check continues to MAX_EMPTY_ROWS_CHECKED rows. The null counts in the statistics of the file are not used, because
    pyarrow crashes on damaged statistics.

    Args:
        table: The Parquet file.
        column: The name of the audio column.
    """
    fields = _fields(table.schema_arrow.field(column).type)
    paths = [path for path in _leaves(table, column) if not path.startswith(f"{column}.array.")]
    missing = checked = size = 0
    for cell in _group_cells(table, column, range(table.num_row_groups), paths):
        content = _value(cell, "bytes")
        has_audio = content is not None or ("array" in fields and cell.is_valid)
        missing, checked, size = missing + (not has_audio), checked + 1, size + len(content or b"")
        if size > MAX_CHECKED_BYTES or checked == (MAX_ROWS_CHECKED if missing < checked else MAX_EMPTY_ROWS_CHECKED):
            break
    return RowsWithoutAudio(missing, checked)


def is_damage(error: Exception) -> bool:
    """Return True if an error of reading a Parquet file is caused by damage of the file.

    For some damaged files, pyarrow raises OSError without an errno.
    """
    return not isinstance(error, OSError) or error.errno is None


def not_embedded(files: Mapping[str, RowsWithoutAudio]) -> str:
    """Format advice on Parquet files that have rows without audio.

    Args:
        files: The results of `rows_without_audio`, by the URI of the file.
    """
    example = min(files)
    rows = files[example]
    more = f" (also rows of {len(files) - 1:,} other files)" if len(files) > 1 else ""
    return (
        f"audio is not embedded: {rows.missing:,} of {rows.checked:,} checked rows of {example} have only a path{more}"
        ": rewrite the files with dataset.with_format('arrow').map(datasets.table.embed_table_storage, batched=True)"
        ".with_format(None).to_parquet(FILE), or list the paths in a .txt file"
    )


def _item(name: str, cell: pa.Scalar, path: str, scratch: Path) -> AudioItem:
    """Write the audio of a cell to a file in `scratch`, and return the item with this file."""
    if (content := _value(cell, "bytes")) is not None:
        extension = PurePosixPath(path).suffix.lower()
        target = scratch / f"item{extension if extension in AUDIO_EXTENSIONS else ''}"
        target.write_bytes(content)
        return AudioItem(name, target)
    if (array := _part(cell, "array")) is not None and array.is_valid:
        try:
            write_wav(scratch / "item.wav", name, array, _value(cell, "sampling_rate"))
        except AudioDecodeError as error:
            return AudioItem(name, None, error.reason)
        return AudioItem(name, scratch / "item.wav")
    return AudioItem(name, None, NOT_EMBEDDED if path else "row has no audio")


def row_group_starts(file: io.RawIOBase) -> Iterator[int]:
    """Yield the byte offsets of row groups, at which a Parquet file can be divided.

    Raises:
        IndivisibleError: The row groups are not stored in order, or the file is damaged.
    """
    try:
        size = file.seek(0, io.SEEK_END)
        with pq.ParquetFile(io.BufferedReader(file)) as table:
            spans = [_span(table, group) for group in range(table.num_row_groups)]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if not is_damage(error):
            raise
        raise IndivisibleError(str(error)) from error
    if any(start < stop for (_, stop), (start, _) in pairwise([(0, 0), *spans, (size, size)])):
        raise IndivisibleError("row groups are not stored in order")
    yield from (start for start, _ in spans)


def _span(table: pq.ParquetFile, group: int) -> tuple[int, int]:
    """Return the byte offsets of the start and the end of a row group."""
    row_group = table.metadata.row_group(group)
    chunks = [row_group.column(place) for place in range(row_group.num_columns)]
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    return min(starts), max(start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True))


def _all_cells(source: Source, local: Path) -> Iterator[tuple[int, pa.Scalar]]:
    """Yield the row number in the file and the audio cell of each row of a source."""
    try:
        with pq.ParquetFile(local, buffer_size=READ_BUFFER_BYTES) as table:
            column = audio_column(table.schema_arrow)
            if column is None:
                raise AudioDecodeError(source.uri, "Parquet file has no audio column")
            yield from _cells(table, column, source)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = f"damaged Parquet file, remaining rows skipped ({' '.join(str(error).split())})"
        raise AudioDecodeError(source.uri, reason) from error


def _cells(table: pq.ParquetFile, column: str, source: Source) -> Iterator[tuple[int, pa.Scalar]]:
    """Yield row numbers and cells of a column, with one cell in memory at a time."""
    number = 0
    for group in range(table.num_row_groups):
        if source.part is not None:
            start, stop = _span(table, group)
            if not source.part.start <= start < source.part.stop:
                number += table.metadata.row_group(group).num_rows
                continue
            if stop > source.part.stop:
                raise changed_error(source)
        for cell in _group_cells(table, column, [group], _leaves(table, column)):
            yield number, cell
            number += 1


def _group_cells(
    table: pq.ParquetFile, column: str, groups: Iterable[int], leaves: Sequence[str]
) -> Iterator[pa.Scalar]:
    """Yield the cells of a column in row groups. Raise ArrowInvalid if a row group could exhaust the memory."""
    for group in groups:
        _check_memory(table, column, group)
        for batch in table.iter_batches(batch_size=1, row_groups=[group], columns=leaves):
            yield from batch.column(0)


def _check_memory(table: pq.ParquetFile, column: str, group: int) -> None:
    row_group = table.metadata.row_group(group)
    for chunk in (row_group.column(place) for place in range(row_group.num_columns)):
        stored, expanded = chunk.total_compressed_size, chunk.total_uncompressed_size
        bound = max(MIN_GROUP_BYTES, GROUP_BYTES_PER_BYTE * stored)
        if chunk.path_in_schema.startswith(f"{column}.array.") and chunk.num_values * 8 > bound:
            raise pa.ArrowInvalid(f"row group {group} declares {chunk.num_values:,} samples in {stored:,} bytes")
        if f"{chunk.path_in_schema}.".startswith(f"{column}.") and expanded > bound:
            raise pa.ArrowInvalid(f"row group {group} expands from {stored:,} to {expanded:,} bytes: at most {bound:,}")


def _leaves(table: pq.ParquetFile, column: str) -> list[str]:
    """Return the paths of the leaf columns to read.

    The leaf columns are the audio column itself, or the leaves of its struct fields in FIELDS.
    """
    paths = [table.schema.column(place).path for place in range(len(table.schema))]
    wanted = tuple(f"{column}.{name}." for name in FIELDS)
    return [path for path in paths if path == column or f"{path}.".startswith(wanted)]


def _part(cell: pa.Scalar, field: str) -> pa.Scalar | None:
    """Return a field of an audio cell, or None if the field is missing.

    A cell that is not a struct is its own field `bytes`.
    """
    if not pa.types.is_struct(cell.type):
        return cell if field == "bytes" else None
    return cell[field] if cell.is_valid and cell.type.get_field_index(field) >= 0 else None


def _value(cell: pa.Scalar, field: str) -> Any:
    part = _part(cell, field)
    return None if part is None else part.as_py()


def _path(cell: pa.Scalar) -> str:
    """Return the path of a cell, or an empty text. Bytes that are not UTF-8 are escaped."""
    part = _part(cell, "path")
    if (
        part is None
        or not part.is_valid
        or not isinstance(part, pa.StringScalar | pa.LargeStringScalar | pa.StringViewScalar)
    ):
        return ""
    return bytes(part.as_buffer()).decode(errors="backslashreplace")


def _fields(kind: pa.DataType) -> set[str]:
    return {field.name for field in kind} if pa.types.is_struct(kind) else set()


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
