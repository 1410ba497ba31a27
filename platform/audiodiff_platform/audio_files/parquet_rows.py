"""Audio files in the rows of Parquet files (Hugging Face datasets).

A row holds a file's bytes, alone or in a struct beside its path, or decoded samples: a struct of `array` and
`sampling_rate`.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.audio import AUDIO_EXTENSIONS, AudioDecodeError
from audiodiff_platform.audio_files.arrays import write_wav
from audiodiff_platform.audio_files.item import AudioItem
from audiodiff_platform.audio_files.source import IndivisibleError, Source, changed, passed_over

FIELDS = frozenset({"bytes", "path", "array", "sampling_rate"})
ROWS_CHECKED, EMPTY_ROWS_CHECKED, BYTES_CHECKED = 1_000, 100_000, 1 << 20
READ_BUFFER_BYTES = 1 << 20  # buffered, or a whole row group's audio would be in memory
# A row of few bytes may state any number of equal samples. These bound the memory that a row group's samples could take.
ARRAY_BYTES_AT_LEAST = 256 << 20
ARRAY_BYTES_PER_BYTE = 64

NOT_EMBEDDED = "a path without audio: embed the files in the Parquet file"


@dataclass(frozen=True)
class RowsWithoutAudio:
    """The number of rows of a Parquet file that lack audio, and of those that were checked."""

    missing: int
    checked: int

    @property
    def are_all(self) -> bool:
        """True if no row that was checked holds audio."""
        return self.missing == self.checked


def rows(source: Source, local: Path, scratch: Path, skipped: Counter[str]) -> Iterator[AudioItem]:
    """The audio files of a Parquet file, each in a file that the next one replaces; names hold the row's number."""
    for number, cell in _all_cells(source, local):
        path = _path(cell)
        if kind := passed_over(PurePosixPath(path)):
            skipped[kind] += 1
            continue
        yield _item(f"{source.uri}/{number}" + (f"-{PurePosixPath(path).name}" if path else ""), cell, path, scratch)


def audio_column(schema: pa.Schema) -> str | None:
    """The column that Hugging Face's metadata calls audio, else `audio`, else the first of decoded samples.

    None if there is no such column or if its type cannot hold audio.
    """
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        typed = {name: feature for name, feature in features.items() if isinstance(feature, dict)}
        stated = [name for name, feature in typed.items() if feature.get("_type") == "Audio"]
    except (ValueError, KeyError, TypeError, AttributeError):  # the metadata is not that of datasets
        stated = []
    decoded = [field.name for field in schema if {"array", "sampling_rate"} <= _fields(field.type)]
    for name in [*stated, "audio", *decoded]:
        if name in schema.names:
            kind = schema.field(name).type
            if _is_binary(kind) or _fields(kind) & {"bytes", "path"} or {"array", "sampling_rate"} <= _fields(kind):
                return str(name)
    return None


def rows_without_audio(table: pq.ParquetFile, column: str) -> RowsWithoutAudio:
    """Count the rows of an audio column that lack audio, up to a bound on rows and on bytes read.

    Rows are read: damaged statistics would end the process in pyarrow. Samples are not read.
    """
    fields = _fields(table.schema_arrow.field(column).type)
    paths = [path for path in _leaves(table, column) if not path.startswith(f"{column}.array.")]
    missing = checked = size = 0
    for batch in table.iter_batches(batch_size=1, columns=paths):
        (cell,) = batch.column(0)
        content = _value(cell, "bytes")
        has_audio = content is not None or ("array" in fields and cell.is_valid)
        missing, checked, size = missing + (not has_audio), checked + 1, size + len(content or b"")
        if size > BYTES_CHECKED or checked == (ROWS_CHECKED if missing < checked else EMPTY_ROWS_CHECKED):
            break
    return RowsWithoutAudio(missing, checked)


def is_damage(error: pa.ArrowException | OSError | UnicodeDecodeError) -> bool:
    """True for an error in a Parquet file's content; pyarrow raises some as OSError, which has no number then."""
    return not isinstance(error, OSError) or error.errno is None


def not_embedded(files: Mapping[str, RowsWithoutAudio]) -> str:
    """Advice on Parquet files of which some or all rows lack audio."""
    example = min(files)
    rows = files[example]
    more = f" (and rows of {len(files) - 1:,} more files)" if len(files) > 1 else ""
    return (
        f"audio is not embedded: {rows.missing:,} of {rows.checked:,} rows checked of {example} have only a path{more}: "
        "write the files anew by dataset.with_format('arrow').map(datasets.table.embed_table_storage, batched=True)"
        ".with_format(None).to_parquet(FILE), or list the paths in a .txt file"
    )


def _item(name: str, cell: pa.Scalar, path: str, scratch: Path) -> AudioItem:
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
    return AudioItem(name, None, NOT_EMBEDDED if path else "a row without audio")


def row_group_starts(file: io.RawIOBase) -> Iterator[int]:
    """The places at which a Parquet file can be divided: where row groups begin.

    Raises IndivisibleError if row groups do not lie one after the other, or if the file is damaged.
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
        raise IndivisibleError("row groups that lie in another order")
    yield from (start for start, _ in spans)


def _span(table: pq.ParquetFile, group: int) -> tuple[int, int]:
    """Return the places where the bytes of a row group begin and end."""
    row_group = table.metadata.row_group(group)
    chunks = [row_group.column(place) for place in range(row_group.num_columns)]
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    return min(starts), max(start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True))


def _all_cells(source: Source, local: Path) -> Iterator[tuple[int, pa.Scalar]]:
    """The audio of all rows of a source, with the numbers of the rows in their file. Raises AudioDecodeError where the file cannot be read."""
    try:
        with pq.ParquetFile(local, buffer_size=READ_BUFFER_BYTES) as table:
            column = audio_column(table.schema_arrow)
            if column is None:
                raise AudioDecodeError(source.uri, "Parquet without an audio column")
            yield from _cells(table, column, source)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = f"Parquet that cannot be read on ({' '.join(str(error).split())})"
        raise AudioDecodeError(source.uri, reason) from error


def _cells(table: pq.ParquetFile, column: str, source: Source) -> Iterator[tuple[int, pa.Scalar]]:
    """A column's cells, one in memory at a time. Raises ArrowInvalid for samples that would fill the memory."""
    number = 0
    for group in range(table.num_row_groups):
        if source.part is not None:
            start, stop = _span(table, group)
            if not source.part.start <= start < source.part.stop:
                number += table.metadata.row_group(group).num_rows
                continue
            if stop > source.part.stop:
                raise changed(source)
        if "array" in _fields(table.schema_arrow.field(column).type):
            _check_samples(table, column, group)
        for batch in table.iter_batches(batch_size=1, row_groups=[group], columns=_leaves(table, column)):
            for cell in batch.column(0):
                yield number, cell
                number += 1


def _check_samples(table: pq.ParquetFile, column: str, group: int) -> None:
    row_group = table.metadata.row_group(group)
    for chunk in (row_group.column(place) for place in range(row_group.num_columns)):
        stored = chunk.total_compressed_size
        bound = max(ARRAY_BYTES_AT_LEAST, ARRAY_BYTES_PER_BYTE * stored)
        if chunk.path_in_schema.startswith(f"{column}.array.") and chunk.num_values * 8 > bound:
            raise pa.ArrowInvalid(f"row group {group} states {chunk.num_values:,} samples in {stored:,} bytes")


def _leaves(table: pq.ParquetFile, column: str) -> list[str]:
    """Paths of an audio column that are read: other fields of a struct are left alone."""
    paths = [table.schema.column(place).path for place in range(len(table.schema))]
    wanted = tuple(f"{column}.{name}." for name in FIELDS)
    return [path for path in paths if path == column or f"{path}.".startswith(wanted)]


def _part(cell: pa.Scalar, field: str) -> pa.Scalar | None:
    """A field of a cell, None if there is no such field; a cell that is no struct is its own `bytes`."""
    if not pa.types.is_struct(cell.type):
        return cell if field == "bytes" else None
    return cell[field] if cell.is_valid and cell.type.get_field_index(field) >= 0 else None


def _value(cell: pa.Scalar, field: str) -> Any:
    part = _part(cell, field)
    return None if part is None else part.as_py()


def _path(cell: pa.Scalar) -> str:
    """The path of a row, empty if there is none; bytes that are not UTF-8 are escaped."""
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
