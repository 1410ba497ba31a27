"""Files of a plan: append-only Parquet files whose rows belong to shards.

    _plan/NNNN.parquet    rows sorted by `shard`; each file begins after the last shard of the file before

A worker reads only the row groups that hold its shard. The driver reads all rows as a stream.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.arrow_tables import table

ROW_GROUP_ROWS = 4_096  # a worker reads only the row groups that hold its shard
READ_AHEAD_BYTES = 1 << 20  # about one row group; the default of an object store client is 50 MB


def content(rows: Iterable[Mapping[str, Any]], schema: pa.Schema, group_rows: int = ROW_GROUP_ROWS) -> bytes:
    """Return the content of a plan file.

    Args:
        rows: The rows, sorted by shard.
        schema: The columns. The first column is `shard`.
        group_rows: Rows per row group.
    """
    buffer, remaining = io.BytesIO(), iter(rows)
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        while row_group := list(islice(remaining, group_rows)):
            writer.write_table(table(row_group, schema))
    return buffer.getvalue()


def append(folder: Folder, plan_file: bytes, generation: int | None = None) -> None:
    """Append a file to the plan.

    Args:
        folder: Folder that holds `_plan`.
        plan_file: The content of the file.
        generation: Number of plan files at the time when the shards were planned, or None for the present number.

    Raises:
        JobError: Another job has written its plan in the meantime.
    """
    if generation is None:
        generation = count(folder)
    name = f"_plan/{generation:04d}.parquet"
    if not folder.create(name, plan_file) and folder.read(name) != plan_file:
        raise JobError(f"{folder.uri}/{name} was written by another job: run the same command again")


def count(folder: Folder) -> int:
    """Return the number of plan files."""
    return len(folder.names("_plan/*.parquet"))


def row_count(folder: Folder) -> int:
    """Return the number of rows of all shards."""
    total = 0
    for name in folder.names("_plan/*.parquet"):
        with _opened(folder, name) as plan:
            total += plan.metadata.num_rows
    return total


def all_rows(folder: Folder) -> Iterator[dict[str, Any]]:
    """Yield the rows of all shards in the order of the plan."""
    for name in folder.names("_plan/*.parquet"):
        yield from file_rows(folder, name)


def file_rows(folder: Folder, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file."""
    with _opened(folder, name) as plan:
        yield from _rows(plan)


def shard_rows(folder: Folder, shard: int) -> list[dict[str, Any]]:
    """Return the rows of a shard, or an empty list for a shard that is not planned.

    The last plan file is read first, because it holds the new shards of the present run. Other shards are found by
    bisection.
    """
    names = folder.names("_plan/*.parquet")
    first, last = 0, len(names)  # the plan file that holds the shard is in names[first:last]
    place = last - 1
    while first < last:
        with _opened(folder, names[place]) as plan:
            if plan.metadata.row_group(0).column(0).statistics.min > shard:
                last = place
            elif plan.metadata.row_group(plan.num_row_groups - 1).column(0).statistics.max < shard:
                first = place + 1
            else:
                return list(_rows(plan, shard))
        place = (first + last) // 2
    return []


@contextmanager
def _opened(folder: Folder, name: str) -> Iterator[pq.ParquetFile]:
    with (
        folder.reached(name),
        folder.filesystem.open(folder.path(name), "rb", block_size=READ_AHEAD_BYTES) as file,
        pq.ParquetFile(file) as plan,
    ):
        yield plan


def _rows(plan: pq.ParquetFile, wanted: int | None = None) -> Iterator[dict[str, Any]]:
    for group in range(plan.num_row_groups):
        shards = plan.metadata.row_group(group).column(0).statistics
        if wanted is not None and not shards.min <= wanted <= shards.max:
            continue
        for row in plan.read_row_group(group).to_pylist():
            if wanted is None or row["shard"] == wanted:
                yield row
