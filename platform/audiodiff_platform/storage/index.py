"""Index of a finished folder: one Parquet file that lists every committed part.

Readers open the index instead of the commit records. `_SUCCESS` holds the digest of `_index.parquet`. The index has one
row for each part, in the order of shards and names:

    shard       number of the shard of the part
    path        name of the part in the folder
    row_groups  number of rows of each row group, or null if the part is not a Parquet file
    bytes       size of the part, or null if its commit record has no size
    sha256      SHA-256 of the part in hexadecimal

Parts never change. An index is therefore a version of the folder, and stays valid after a job adds more parts.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audiodiff_platform.storage.folder import Folder

INDEX = "_index.parquet"
ROW_GROUP_ROWS = 16_384
READ_AHEAD_BYTES = 1 << 20  # about one row group; the default of an object store client is 50 MB
_DIGEST = b"audiodiff_dataset_digest"
INDEX_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("path", pa.string()),
        ("row_groups", pa.list_(pa.int32())),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class CommittedPart:
    """A row of the index: an output file of a committed shard."""

    shard: int
    path: str
    row_groups: list[int] | None
    bytes: int | None
    sha256: str


def parts_of(records: Mapping[int, Mapping[str, Any]]) -> Iterator[CommittedPart]:
    """Yield the parts in commit records, in the order of shards and names."""
    for shard, record in sorted(records.items()):
        sizes = record.get("sizes", {})
        for path, sha256 in sorted(record["parts"].items()):
            yield CommittedPart(shard, path, _row_groups(record, path), sizes.get(path), sha256)


def _row_groups(record: Mapping[str, Any], path: str) -> list[int] | None:
    """Return the row groups of the part `data/<split>-<shard>.parquet`, or None for another part.

    A record holds `row_groups` under the name of each split, or at its top level if it has only one split.
    """
    folder, _, name = path.rpartition("/")
    return record.get(name.rpartition("-")[0], record).get("row_groups") if folder == "data" else None


def to_parquet(parts: Sequence[CommittedPart]) -> bytes:
    """Return the content of an index file."""
    columns = {name: [getattr(part, name) for part in parts] for name in INDEX_SCHEMA.names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=INDEX_SCHEMA), buffer, row_group_size=ROW_GROUP_ROWS, compression="zstd")
    return buffer.getvalue()


def from_parquet(content: bytes) -> list[CommittedPart]:
    """Return the parts in the content of an index file."""
    columns = pq.read_table(io.BytesIO(content), schema=INDEX_SCHEMA).to_pydict()
    return [CommittedPart(*row) for row in zip(*(columns[name] for name in INDEX_SCHEMA.names), strict=True)]


def streamed(file: IO[bytes]) -> Iterator[CommittedPart]:
    """Yield the parts in an index file, without their row groups."""
    with pq.ParquetFile(file) as index:
        for batch in index.iter_batches(columns=["shard", "path", "bytes", "sha256"]):
            for row in batch.to_pylist():
                yield CommittedPart(row["shard"], row["path"], None, row["bytes"], row["sha256"])


def parts_of_shard(folder: Folder, shard: int) -> list[CommittedPart]:
    """Return the parts of a shard from the row groups of the index that hold the shard.

    Raises:
        FileNotFoundError: The folder has no index.
    """
    with (
        folder.reached(INDEX),
        folder.filesystem.open(folder.path(INDEX), "rb", block_size=READ_AHEAD_BYTES) as file,
        pq.ParquetFile(file) as index,
    ):
        groups = [group for group in range(index.num_row_groups) if _holds(index, group, shard)]
        rows = index.read_row_groups(groups, use_threads=False).filter(pc.field("shard") == shard)
        return [CommittedPart(**row) for row in rows.to_pylist()]


def _holds(index: pq.ParquetFile, group: int, shard: int) -> bool:
    """Return True if a row group can hold the parts of a shard."""
    shards = index.metadata.row_group(group).column(0).statistics
    return bool(shards.min <= shard <= shards.max)


def with_digest(content: bytes, digest: str) -> bytes:
    """Return the content of an index file with the digest of its data set in the metadata."""
    table = pq.read_table(io.BytesIO(content))
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_DIGEST: digest}), buffer, compression="zstd")
    return buffer.getvalue()


def digest_of(content: bytes) -> str:
    """Return the digest that `with_digest` stored in an index file."""
    return str(pq.read_schema(io.BytesIO(content)).metadata[_DIGEST].decode())
