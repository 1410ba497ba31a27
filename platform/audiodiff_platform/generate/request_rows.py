"""Rows of a file of requests: JSON lines, CSV or Parquet.

A file is untrusted in size: rows are read one after another, and what a row takes in memory is bounded before it is
read.
"""

import csv
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audiodiff_platform.audio_files.parquet_rows import is_damage
from audiodiff_platform.storage import Folder

MAX_FILE_BYTES = 1 << 30
MAX_ROWS = 1_000_000
MAX_ROW_BYTES = 1 << 20
PARQUET_BATCH_ROWS = 64
LEAF_BYTES = 8
JSON_CELLS = ("regenerate", "seeds", "sources")
"""Fields whose CSV cells are JSON lists. A cell of `encoding` is a list if it begins with a bracket."""

Row = dict[str, Any] | str
"""The fields of a row, or the reason why they cannot be read, as `field: reason`."""


def read_rows(uri: str) -> Iterator[Row]:
    """Yield the rows of a file of requests.

    Args:
        uri: Path or URI. Its extension is .jsonl, .csv or .parquet.

    Raises:
        ValueError: The file does not exist, is too large, or is not of its format.
    """
    parent, _, name = uri.rpartition("/")
    folder = Folder(parent or ("/" if uri.startswith("/") else "."))
    readers = {"jsonl": _json_rows, "ndjson": _json_rows, "csv": _csv_rows, "parquet": _parquet_rows}
    reader = readers.get(name.rpartition(".")[2].lower())
    if reader is None:
        raise ValueError(f"requests {uri}: use a file with the extension .jsonl, .csv or .parquet")
    try:
        yield from _bounded(folder, name, reader)
    except FileNotFoundError:
        raise ValueError(f"requests {uri}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"requests {uri}: is a folder, name a file") from None
    except ValueError as error:
        raise ValueError(f"requests {uri}: {' '.join(str(error).split())}") from error


def _bounded(folder: Folder, name: str, reader: Callable[[Any], Iterator[Row]]) -> Iterator[Row]:
    """Yield the rows of a file of at most MAX_FILE_BYTES and MAX_ROWS."""
    size, number = folder.entry(name).size, 0
    if size > MAX_FILE_BYTES:
        raise ValueError(f"has {size:,} bytes: must be at most {MAX_FILE_BYTES:,}, use several output folders")
    with folder.reached(name), folder.filesystem.open(folder.path(name), "rb") as file:
        for number, row in enumerate(reader(file), start=1):
            if number > MAX_ROWS:
                raise ValueError(f"has more than {MAX_ROWS:,} rows: use several output folders")
            yield row
    if not number:
        raise ValueError("has no rows")


def _lines(file: Any) -> Iterator[bytes]:
    """Yield the lines of a file. A line that is too long is cut, and marked by a missing line end."""
    while line := file.readline(MAX_ROW_BYTES + 1):
        yield line
        while len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_ROW_BYTES + 1)


def _json_rows(file: Any) -> Iterator[Row]:
    for number, line in enumerate(_lines(file)):
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
        if text.strip():
            yield _json_row(text)


def _json_row(line: bytes) -> Row:
    if len(line) > MAX_ROW_BYTES:
        return f"row: has more than {MAX_ROW_BYTES:,} bytes"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"row: is not JSON ({error})"
    return row if isinstance(row, dict) else "row: is not a JSON object"


def _csv_rows(file: Any) -> Iterator[Row]:
    def text() -> Iterator[str]:
        for line in _lines(file):
            if len(line) > MAX_ROW_BYTES:
                raise ValueError(f"has a line of more than {MAX_ROW_BYTES:,} bytes")
            yield line.decode()

    lines = text()
    csv.field_size_limit(MAX_ROW_BYTES)
    try:
        header = next(csv.reader([next(lines, "").removeprefix("\ufeff")], strict=True), [])
        names = [name.strip() for name in header]
        if len(set(names)) != len(names) or not all(names):
            raise ValueError("has a column without a name, or two of one name, in its first line")
        for cells in csv.reader(lines, strict=True):
            if any(cells):
                yield _csv_row(names, cells)
    except csv.Error as error:
        raise ValueError(f"is not CSV ({error})") from error


def _csv_row(names: list[str], cells: list[str]) -> Row:
    if len(cells) > len(names):
        return f"row: has {len(cells)} cells, the first line names {len(names)}"
    row: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=False):
        if cell == "":
            continue
        if name in JSON_CELLS or (name == "encoding" and cell.startswith("[")):
            try:
                row[name] = json.loads(cell)
            except (ValueError, RecursionError) as error:
                return f"{name}: is not a JSON list ({error})"
        else:
            row[name] = cell
    return row


def _parquet_rows(file: Any) -> Iterator[Row]:
    try:
        yield from _table_rows(file)
    except (pa.ArrowException, OSError) as error:
        if not is_damage(error):
            raise
        raise ValueError(f"cannot read Parquet ({error}): write the file again") from error


def _table_rows(file: Any) -> Iterator[Row]:
    """Yield the rows of a Parquet file."""
    metadata = pq.read_metadata(file)
    columns = [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    size = sum(column.total_uncompressed_size + LEAF_BYTES * column.num_values for column in columns)
    if size > MAX_FILE_BYTES or metadata.num_rows > MAX_ROWS:
        raise ValueError(
            f"has {metadata.num_rows:,} rows of {size:,} bytes in all: must be at most {MAX_ROWS:,} and "
            f"{MAX_FILE_BYTES:,}, use several output folders"
        )
    text = [column.path_in_schema for column in columns if column.physical_type == "BYTE_ARRAY"]
    # Text stays encoded by a dictionary: a small file can hold a long text in many rows.
    with pq.ParquetFile(file, read_dictionary=sorted(set(text))) as table:
        for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if _text_bytes(column) > MAX_ROW_BYTES * batch.num_rows:
                    raise ValueError(f"column {name} holds texts of more than {MAX_ROW_BYTES:,} bytes")
            for row in batch.to_pylist():
                yield {name: value for name, value in row.items() if value is not None}


def _text_bytes(column: pa.Array) -> int:
    """Return the size of all texts in a column of texts or lists."""
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = column.flatten()
    if pa.types.is_nested(column.type):
        raise ValueError(f"has a column of the type {column.type}: use numbers, text and lists")
    if pa.types.is_dictionary(column.type):
        return int(pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0)
    return 0
