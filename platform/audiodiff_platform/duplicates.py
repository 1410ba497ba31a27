"""Which items repeat another's bytes: a digest pass over the sources before they are planned.

    DIR/_digests/_plan, _commits   the commit protocol, as for the dataset itself
    DIR/_digests/NNNNNN.parquet    the digests of a shard's items, kept: files added later are compared with them
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.audio import AudioDecodeError
from audiodiff_platform import commits
from audiodiff_platform.audio_files import Inputs, Source, items
from audiodiff_platform.plan import append_plan, cut, new_sources, read_shard, shard_seconds, sizes
from audiodiff_platform.progress import Progress
from audiodiff_platform.shards import run_shards
from audiodiff_platform.source_digests import DUPLICATES, record_digests
from audiodiff_platform.storage import Folder

SHARD_SECONDS_AT_LEAST = 1_800
SCHEMA = pa.schema([("source", pa.string()), ("item", pa.string()), ("sha256", pa.binary(32))])


def find_duplicates(input_dir: str, output: Folder, sources: Sequence[Source], workers: int) -> dict[str, list[str]]:
    """The items of new `sources` whose bytes an item planned earlier has, or one of them with a smaller name; by source.

    Reads all of `sources`, on workers; an interrupted pass goes on from its finished shards.
    """
    generation = len(output.names("_plan/*.parquet"))
    folder = Folder(f"{output.uri}/{DUPLICATES}/{generation:04d}")
    planned, new = new_sources(folder, sources, Inputs(input_dir))
    assigned = cut(new, shard_seconds(new, SHARD_SECONDS_AT_LEAST), first=len(planned))
    append_plan(folder, assigned, {})
    pending = {shard: size for shard, size in {**planned, **sizes(assigned)}.items() if shard not in commits.committed(folder)}
    progress = Progress("digests", pending)
    for counts in run_shards(DigestWorker, (input_dir, folder.uri), sorted(pending), workers):
        progress.finished(counts)
    earlier = [Folder(f"{output.uri}/{DUPLICATES}/{number:04d}") for number in range(generation)]
    seen = {row["sha256"] for digested in earlier for row in _digests(digested)}
    left_out: dict[str, list[str]] = {}
    for item, source, sha256 in sorted((row["item"], row["source"], row["sha256"]) for row in _digests(folder)):
        if sha256 in seen:
            left_out.setdefault(source, []).append(item)
        seen.add(sha256)
    return left_out


def _digests(folder: Folder) -> Iterator[dict[str, Any]]:
    for shard in commits.committed(folder):
        with pq.ParquetFile(io.BytesIO(folder.read(_name(shard)))) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()


def _name(shard: int) -> str:
    return f"{shard:06d}.parquet"


class DigestWorker:
    """Digests the items of shards; lives in an actor."""

    def __init__(self, input_dir: str, folder: str) -> None:
        self.inputs, self.folder = Inputs(input_dir), Folder(folder)

    def shard(self, shard: int) -> dict[str, int]:
        """Writes the digests of the shard's items, and commits them. What cannot be read has none: it is quarantined when it is prepared."""
        rows = []
        digests: dict[str, str] = {}
        with self.folder.scratch() as scratch:
            for source, _ in read_shard(self.folder, shard):
                with suppress(AudioDecodeError):
                    local = self.inputs.fetch(source, scratch)
                    digests[source.uri] = commits.file_sha256(local)
                    for item in items(source, local, scratch):
                        with suppress(AudioDecodeError):
                            sha256 = commits.file_sha256(item.local) if source.is_container else digests[source.uri]
                            rows.append({"source": source.uri, "item": item.name, "sha256": bytes.fromhex(sha256)})
                for copy in scratch.iterdir():
                    copy.unlink()
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="zstd")
        self.folder.write(_name(shard), buffer.getvalue())
        commits.commit(self.folder, shard, {"rows": len(rows), **record_digests(self.folder, shard, digests)})
        return {"shard": shard, "files": len(rows)}
