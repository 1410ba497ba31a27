"""Duplicates, found by the digests of all items, of which the driver holds a few bytes each."""

import io
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_platform.prepare.duplicates import DIGESTS_SCHEMA, repeated
from audiodiff_platform.storage import Folder, commits

Row = tuple[str, str, bytes]


def digested(place: Path, shards: Sequence[Sequence[Row]]) -> Folder:
    """Write a finished folder of shards of (item, source, digest)."""
    folder, records = Folder(str(place)), {}
    for shard, rows in enumerate(shards):
        buffer = io.BytesIO()
        items, sources, digests = zip(*rows, strict=True) if rows else ((), (), ())
        pq.write_table(pa.table([sources, items, digests], schema=DIGESTS_SCHEMA), buffer)
        name = f"parts/{shard:06d}.parquet"
        folder.write(name, buffer.getvalue())
        records[shard] = {"rows": len(rows), "parts": {name: commits.sha256(buffer.getvalue())}}
    commits.succeed(folder, {}, records)
    return folder


def expected(earlier: Sequence[Row], rows: Sequence[Row]) -> dict[str, list[str]]:
    """Compute the expected result of `repeated` with all rows in memory."""
    seen = {digest for _, _, digest in earlier}
    left_out: dict[str, list[str]] = {}
    for item, source, digest in sorted(rows):
        if digest in seen:
            left_out.setdefault(source, []).append(item)
        seen.add(digest)
    return left_out


def test_of_equal_items_the_first_by_name_is_kept(tmp_path: Path) -> None:
    chance = random.Random(0)
    contents = [bytes(8) + chance.randbytes(24) for _ in range(40)]  # all begin with the same eight bytes
    contents += [chance.randbytes(32) for _ in range(300)]
    rows = [
        (f"{chance.randrange(200)}.tar/{number}", f"{chance.randrange(9)}.tar", chance.choice(contents))
        for number in range(500)
    ]
    earlier = [digested(tmp_path / "0000", [rows[:50], []]), digested(tmp_path / "0001", [rows[50:100]])]
    latest = digested(tmp_path / "0002", [rows[100:300], rows[300:]])
    assert repeated(earlier, latest) == expected(rows[:100], rows[100:])
    assert repeated([], latest) == expected([], rows[100:])
    assert repeated([], digested(tmp_path / "none", [])) == {}


def test_items_that_repeat_none_take_a_few_bytes_each(tmp_path: Path) -> None:
    chance = random.Random(0)
    count = 100_000
    rows = [(f"archive.tar/album/{number:07d}.flac", "archive.tar", chance.randbytes(32)) for number in range(count)]
    rows.append(("archive.tar/again.flac", "archive.tar", rows[7][2]))
    folder = digested(tmp_path, [rows[first : first + 5_000] for first in range(0, len(rows), 5_000)])
    del rows
    repeated([], folder)  # imports of the first call are not counted
    tracemalloc.start()
    left_out = repeated([], folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert left_out == {"archive.tar": ["archive.tar/album/0000007.flac"]}
    assert peak < 40 * count, peak
