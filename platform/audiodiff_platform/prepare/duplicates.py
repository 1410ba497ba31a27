"""Detection of duplicate audio files, in a pass over all sources before the shards are planned.

    DIR/_digests/NNNN/_plan, _commits       plan and commits, as in the folder of the dataset
    DIR/_digests/NNNN/parts/NNNNNN.parquet  the digests of the items of a shard

The digests are kept, so that files that are added later can be compared with earlier files.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.audio import AudioDecodeError
from audiodiff_platform.audio_files import Inputs, Source, fetched, items, source_sha256
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Counts, Engine, Record, ShardWork
from audiodiff_platform.work.plan import SourcePlan, new_sources, read_shard, shard_seconds
from audiodiff_platform.work.sharded_job import ShardedJob
from audiodiff_platform.work.source_digests import DUPLICATES, record_digests

DIGESTS_SETTINGS = "digests.json"
MIN_SHARD_SECONDS = 1_800
DIGESTS_SCHEMA = pa.schema([("source", pa.string()), ("item", pa.string()), ("sha256", pa.binary(32))])
Starts = npt.NDArray[np.uint64]
"""The first eight bytes of digests."""
_DIGEST = np.dtype([("start", np.uint64), ("rest", "V24")])
_NO_STARTS: Starts = np.empty(0, np.uint64)


def find_duplicates(input_dir: str, output: Folder, sources: Sequence[Source], running: Engine) -> dict[str, list[str]]:
    """Find the items of new sources whose bytes equal the bytes of another item.

    Workers read all sources. An interrupted pass continues from its finished shards.

    Args:
        input_dir: The URI of the input.
        output: The folder of the dataset.
        sources: The new sources.
        running: The engine that runs the workers.

    Returns:
        The names of the duplicates, by source. Among equal items, the item of an earlier plan is no duplicate, or else
        the item with the smallest name.
    """
    generation = len(output.names("_plan/*.parquet"))
    folder = Folder(f"{output.uri}/{DUPLICATES}/{generation:04d}")
    with owned(folder, take_over=True) as lease:  # safe, because the owner of `output` also owns its subfolders
        planned, new = new_sources(folder, sources, Inputs(input_dir))
        plan = SourcePlan(folder, planned, new, shard_seconds(new, MIN_SHARD_SECONDS))
        work = ShardWork("audiodiff duplicates", DigestWorker, (input_dir, folder.uri), folder.uri, digested)
        job = ShardedJob(work, lease, (DIGESTS_SETTINGS, {"digest_of": "bytes"}), plan, ("parts",), "digests")
        job.run(running)
        job.records()
        job.succeed({"sources": sum(size.sources for size in plan.shards.values())})
    return repeated([Folder(f"{output.uri}/{DUPLICATES}/{earlier:04d}") for earlier in range(generation)], folder)


def repeated(earlier: Sequence[Folder], folder: Folder) -> dict[str, list[str]]:
    """Find the items of `folder` that repeat another item.

    To save memory, a first pass over the digests keeps only eight bytes of each digest. A second pass reads the rows of
    the digests whose first eight bytes occur more than once.

    Args:
        earlier: The folders of earlier digest passes.
        folder: The folder of the latest digest pass.

    Returns:
        The names of the repeating items, by source. The digest of a repeating item equals the digest of an item in an
        `earlier` folder, or of an item in `folder` with a smaller name.
    """
    folders = [*earlier, folder]
    starts = np.concatenate([_NO_STARTS, *(_starts(batch) for one in folders for batch in _digests(one))])
    starts.sort()
    twice = np.unique(starts[1:][starts[1:] == starts[:-1]])
    del starts
    if not len(twice):
        return {}
    seen = {row["sha256"] for one in earlier for row in _rows_of(one, twice)}
    duplicates: dict[str, list[str]] = {}
    for item, source, sha256 in sorted((row["item"], row["source"], row["sha256"]) for row in _rows_of(folder, twice)):
        if sha256 in seen:
            duplicates.setdefault(source, []).append(item)
        seen.add(sha256)
    return duplicates


def _rows_of(folder: Folder, starts: Starts) -> Iterator[dict[str, Any]]:
    """Yield the rows of a folder whose digests begin with one of `starts`."""
    for batch in _digests(folder):
        yield from batch.filter(pa.array(np.isin(_starts(batch), starts))).to_pylist()


def _starts(batch: pa.RecordBatch) -> Starts:
    """Return the first eight bytes of each digest."""
    digests = batch.column("sha256")
    rows = np.frombuffer(digests.buffers()[1], _DIGEST, len(digests), digests.offset * _DIGEST.itemsize)
    return rows["start"].copy()


def _digests(folder: Folder) -> Iterator[pa.RecordBatch]:
    for part in commits.finished(folder)[1]:
        with pq.ParquetFile(io.BytesIO(folder.read(part.path))) as table:
            yield from table.iter_batches()


def _part_name(shard: int) -> str:
    return f"parts/{shard:06d}.parquet"


class DigestWorker:
    """A worker that digests the items of shards.

    Args:
        input_dir: The URI of the input.
        folder: The folder of the digest pass.
    """

    def __init__(self, input_dir: str, folder: str) -> None:
        self.inputs, self.folder = Inputs(input_dir), Folder(folder)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Write the digests of the items of a shard, and return its commit record.

        Items that cannot be read are omitted: prepare quarantines them.
        """
        rows = []
        digests: dict[str, str] = {}
        with self.folder.scratch() as scratch:
            sources = [source for source, _ in read_shard(self.folder, shard)]
            for source, fetching in fetched(self.inputs, sources, scratch):
                if attempts.gives_up(source.key):
                    continue
                with suppress(AudioDecodeError):
                    local = fetching.result()
                    attempts.start(source.key)
                    digests[source.key] = source_sha256(source, local)
                    for item in items(source, local, scratch):
                        with suppress(AudioDecodeError):
                            sha256 = commits.file_sha256(item.local) if source.is_container else digests[source.key]
                            rows.append({"source": source.key, "item": item.name, "sha256": bytes.fromhex(sha256)})
                attempts.start()
        attempts.require_ownership()
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, DIGESTS_SCHEMA), buffer, compression="zstd")
        self.folder.write(_part_name(shard), buffer.getvalue())
        parts = {_part_name(shard): commits.sha256(buffer.getvalue())}
        sizes = {_part_name(shard): len(buffer.getvalue())}
        return {"rows": len(rows), "parts": parts, "sizes": sizes, **record_digests(self.folder, shard, digests)}


def digested(record: Record) -> Counts:
    """Return the progress counts of a commit record: the number of digested items."""
    return {"files": record["rows"]}
