"""Worker of prepare, which writes the slices and the quarantine of a planned shard."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.audio import AudioDecodeError
from audiodiff_core.mel import MelConfig
from audiodiff_core.mel.slices import Slicing
from audiodiff_platform.audio_files import AudioItem, Inputs, Source, fetched, items, shortened, source_sha256
from audiodiff_platform.decoder import Decoder, Limits
from audiodiff_platform.mel_data.mel_dataset import TRAIN_SPLIT, VALIDATION_SPLIT, data_file, is_measured
from audiodiff_platform.mel_data.slice_schema import DATASET_SCHEMA, UNMEASURED_SCHEMA
from audiodiff_platform.prepare.padding import Padding
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.arrow_tables import table
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Counts, Record
from audiodiff_platform.work.plan import read_shard
from audiodiff_platform.work.source_digests import record_digests

ROW_GROUP_ROWS = 128
QUARANTINE_SCHEMA = pa.schema([("audio_file", pa.string()), ("reason", pa.string()), ("size", pa.int64())])


class PrepareWorker:
    """A worker that writes shards of a mel dataset. Audio files are decoded in a child process.

    Args:
        input_dir: The URI of the input.
        output_dir: The folder of the dataset.
        mel: The mel configuration of the images.
        slicing: The options of slicing.
        validation_fraction: The share of audio files in the validation split, 0 to 1.
    """

    def __init__(
        self, input_dir: str, output_dir: str, mel: MelConfig, slicing: Slicing, validation_fraction: float
    ) -> None:
        self.inputs, self.output = Inputs(input_dir), Folder(output_dir)
        self.decoder, self.mel, self.slicing = Decoder(Limits.of(mel)), mel, slicing
        self.validation_fraction, self.slice_s = validation_fraction, mel.slice_duration_s
        self.measured = is_measured(self.output)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Write the slices of each split and the quarantine of a shard; return the commit record."""
        planned = read_shard(self.output, shard)
        wanted = {source: frozenset(left_out) for source, left_out in planned if source.uri not in left_out}
        with self.output.scratch() as scratch:
            schema = DATASET_SCHEMA if self.measured else UNMEASURED_SCHEMA
            draft = Draft(scratch, schema, duplicates=len(planned) - len(wanted))
            for source, fetching in fetched(self.inputs, wanted, scratch):
                if attempts.gives_up(source.key):
                    draft.failed(source.uri, attempts.reason, source.bytes)
                    continue
                try:
                    local = fetching.result()
                    attempts.start(source.key)
                    self._add_source(source, wanted[source], local, draft)
                    attempts.start()
                except AudioDecodeError as error:  # the source cannot be fetched, or is damaged
                    draft.failed(source.uri, error.reason, source.bytes)
            splits = {split: part.closed() for split, part in draft.parts.items()}
            sources = record_digests(self.output, shard, draft.sources)
            counts = {
                "files": draft.files,
                "duplicates": draft.duplicates,
                "failures": draft.failures,
                "skipped": shortened(draft.skipped),
            }
            record = {
                **splits[TRAIN_SPLIT],
                VALIDATION_SPLIT: splits[VALIDATION_SPLIT],
                **counts,
                **sources,
                "padding": draft.padding.record(),
            }
            attempts.require_ownership()
            parts, sizes = self._put(shard, draft, splits)
            return {**record, "parts": parts, "sizes": sizes}

    def _add_source(self, source: Source, left_out: Collection[str], local: Path, draft: "Draft") -> None:
        """Add the items of a source to `draft`, except the duplicates `left_out`."""
        draft.sources[source.key] = sha256 = source_sha256(source, local)
        for item in items(source, local, draft.scratch, draft.skipped):
            if item.name in left_out:
                draft.duplicates += 1
                continue
            try:
                self._add(item, commits.file_sha256(item.local) if source.is_container else sha256, draft)
            except AudioDecodeError as error:
                draft.failed(item.name, error.reason, item.size)

    def _add(self, item: AudioItem, sha256: str, draft: "Draft") -> None:
        """Add the slices of an item to its split. If the item is unusable, only raise AudioDecodeError."""
        spool = draft.scratch / "slices.png"
        sliced = self.decoder.slices(item.name, item.local, spool, self.mel, self.slicing, measured=self.measured)
        part = draft.parts[VALIDATION_SPLIT if int(sha256[:16], 16) < self.validation_fraction * 2**64 else TRAIN_SPLIT]
        for piece, png in sliced:
            draft.padding.add(piece, self.slice_s)
            part.add(
                {
                    "image": {"bytes": png, "path": None},
                    "audio_file": item.name,
                    "slice": piece["index"],
                    "source_sha256": sha256,
                    "start_s": piece["start_s"],
                    "duration_s": piece["duration_s"],
                    "reference_db": piece["reference_db"],
                    **piece["features"],
                }
            )
        draft.used += 1

    def _put(
        self, shard: int, draft: "Draft", splits: dict[str, dict[str, Any]]
    ) -> tuple[dict[str, str], dict[str, int]]:
        """Move the finished files of a shard to the dataset; return their digests and sizes by name."""
        parts = {data_file(shard, split): draft.parts[split].file for split in splits if splits[split]["rows"]}
        if draft.failures:
            parts[f"quarantine/{shard:06d}.parquet"] = draft.scratch / "quarantine.parquet"
            pq.write_table(table(draft.failures, QUARANTINE_SCHEMA), draft.scratch / "quarantine.parquet")
        digests = {name: commits.file_sha256(local) for name, local in parts.items()}
        sizes = {name: local.stat().st_size for name, local in parts.items()}
        for name, local in parts.items():
            self.output.move_in(local, name)
        return digests, sizes


def prepared(record: Record) -> Counts:
    """Return the progress counts of a commit record: files, slices and unusable files."""
    slices = record["rows"] + record[VALIDATION_SPLIT]["rows"]
    return {"files": record["files"], "slices": slices, "unusable": len(record["failures"])}


class Draft:
    """A shard while it is written: its parts by split, and statistics of its files.

    Args:
        scratch: The local folder for the files of the shard.
        schema: The columns of the slices.
        duplicates: The number of sources that were left out as duplicates.
    """

    def __init__(self, scratch: Path, schema: pa.Schema, duplicates: int) -> None:
        self.scratch, self.duplicates = scratch, duplicates
        self.parts = {split: Part(scratch / f"{split}.parquet", schema) for split in (TRAIN_SPLIT, VALIDATION_SPLIT)}
        self.used, self.padding = 0, Padding()
        self.skipped: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.sources: dict[str, str] = {}  # digests of the sources that were read, by key

    @property
    def files(self) -> int:
        """The number of usable and unusable audio files."""
        return self.used + len(self.failures)

    def failed(self, name: str, reason: str, size: int) -> None:
        """Add an unusable audio file of `size` bytes."""
        self.failures.append({"audio_file": name, "reason": reason, "size": size})


class Part:
    """Writer of the rows of one split of a shard, which keeps at most one row group in memory.

    Args:
        file: The Parquet file to write.
        schema: The columns.
    """

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self.file, self.schema = file, schema
        plain = [name for name in schema.names if name != "image"] + ["image.path"]
        self._writer = pq.ParquetWriter(
            file, schema, compression={"image.bytes": "none", **dict.fromkeys(plain, "zstd")}
        )
        self._waiting: list[dict[str, Any]] = []
        self._row_groups: list[int] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add a row of the schema."""
        self._waiting.append(row)
        if len(self._waiting) == ROW_GROUP_ROWS:
            self._write()

    def closed(self) -> dict[str, Any]:
        """Close the file; return the numbers of rows and row groups, the size in bytes and the digest."""
        if self._waiting:
            self._write()
        self._writer.close()
        return {
            "rows": sum(self._row_groups),
            "row_groups": self._row_groups,
            "bytes": self.file.stat().st_size,
            "sha256": commits.file_sha256(self.file),
        }

    def _write(self) -> None:
        self._writer.write_table(table(self._waiting, self.schema))
        self._row_groups.append(len(self._waiting))
        self._waiting = []
