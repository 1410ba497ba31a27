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
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

INDEX = "_index.parquet"
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
    pq.write_table(pa.table(columns, schema=INDEX_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def from_parquet(content: bytes) -> list[CommittedPart]:
    """Return the parts in the content of an index file."""
    columns = pq.read_table(io.BytesIO(content), schema=INDEX_SCHEMA).to_pydict()
    return [CommittedPart(*row) for row in zip(*(columns[name] for name in INDEX_SCHEMA.names), strict=True)]


def with_digest(content: bytes, digest: str) -> bytes:
    """Return the content of an index file with the digest of its data set in the metadata."""
    table = pq.read_table(io.BytesIO(content))
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_DIGEST: digest}), buffer, compression="zstd")
    return buffer.getvalue()


def digest_of(content: bytes) -> str:
    """Return the digest that `with_digest` stored in an index file."""
    return str(pq.read_schema(io.BytesIO(content)).metadata[_DIGEST].decode())
