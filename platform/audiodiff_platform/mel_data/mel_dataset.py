"""The mel dataset on disk.

    DIR/mel_config.json            diffusers' seven mel parameters
    DIR/prepare.json               format version, all other settings, digest
    DIR/README.md                  dataset card, by which `datasets.load_dataset(DIR)` finds the data
    DIR/data/train-NNNNNN.parquet  the slices (`DATASET_SCHEMA`); validation-NNNNNN.parquet where tracks are held out
    DIR/quarantine/*.parquet       files that could not be used, with the reason
    DIR/_plan, DIR/_commits        the commit protocol
    DIR/_index.parquet             the parts, by which the dataset is opened; then DIR/_SUCCESS, last

A version of a dataset is its index: parts are only ever added. A training keeps the index that it began with as
`dataset.parquet` in its run folder (`DATASET_VERSION`), and goes on with these parts whatever is added.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.mel.png import decode_png
from audiodiff_core.mel.slices import Slicing
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.index import INDEX, CommittedPart, digest_of, from_parquet, parts_of, with_digest

DATASET_FORMAT_VERSION = 1
MEL_CONFIG = "mel_config.json"
DATASET_SETTINGS = "prepare.json"

DATASET_VERSION = "dataset.parquet"

HELD_ROW_GROUPS = 72

_FEATURES = {
    "image": {"_type": "Image"},
    "audio_file": {"dtype": "string", "_type": "Value"},
    "slice": {"dtype": "int32", "_type": "Value"},
    "source_sha256": {"dtype": "string", "_type": "Value"},
    "start_s": {"dtype": "float64", "_type": "Value"},
    "duration_s": {"dtype": "float64", "_type": "Value"},
    "reference_db": {"dtype": "float32", "_type": "Value"},
}
DATASET_SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("audio_file", pa.string()),
        ("slice", pa.int32()),
        ("source_sha256", pa.string()),
        ("start_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("reference_db", pa.float32()),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


TRAIN_SPLIT, VALIDATION_SPLIT = "train", "validation"


def data_file(shard: int, split: str = TRAIN_SPLIT) -> str:
    return f"data/{split}-{shard:06d}.parquet"


def groups_of(parts: Iterable[CommittedPart], split: str) -> list[tuple[int, int, int]]:
    """Return the row groups of a split in their order: the shard, the row group in its part, and the number of rows."""
    return [
        (part.shard, group, rows)
        for part in parts
        if part.path == data_file(part.shard, split)
        for group, rows in enumerate(part.row_groups or [])
    ]


def _read(folder: Folder, name: str) -> bytes | None:
    try:
        return folder.read(name)
    except FileNotFoundError:
        return None


def card(mel: MelConfig, slicing: Slicing, splits: Sequence[str], summary: dict[str, Any]) -> str:
    """The dataset card, whose front matter tells `datasets` which files are data. The digest stands in it because the cache of `datasets`
    goes by the front matter alone: without it, a dataset that has grown would be read as it was."""
    files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in splits)
    cut = ", ".join(f"{name} {value}" for name, value in slicing.model_dump().items() if value is not None)
    return f"""---
configs:
- config_name: default
  description: digest {summary["digest"]}
  data_files:
{files}
---
# Mel dataset

{summary["slices"]} slices of {mel.slice_duration_s:.3f} s from {summary["files"] - summary["quarantined"]} files, as {mel.x_res}x{mel.y_res} log-mel
images at {mel.sample_rate} Hz, hop length {mel.hop_length}, n_fft {mel.n_fft}; {cut}. {summary["validation_slices"]} of the slices are held out for validation,
by track. {summary["quarantined"]} more files could not be used (`quarantine/`), {summary["duplicates"]} repeated another.
Digest `{summary["digest"]}`.
"""


class TrainingImages(Protocol):
    """What training reads: mel images by their place, whoever wrote them (`imported.open_dataset` opens any)."""

    mel: MelConfig
    mel_origin: str  # where `mel` was stated, in words
    rows: int
    groups: list[tuple[int, int, int]]  # (shard, row group in it, rows): what is read together
    probe_file: str  # a file of the dataset, which each node must see
    added: int  # rows that were added since the run began, which are not read

    @property
    def digest(self) -> str:
        """Names the content."""

    @property
    def version(self) -> bytes | None:
        """The file that a run keeps, to go on with the same rows when rows are added; None for a dataset that is never added to."""

    def image(self, group: int, row: int) -> Images:
        """The image (y_res, x_res) at a row of a row group, an index into `groups`."""

    def audio_file(self, group: int, row: int) -> str:
        """The file that the image at a row of a row group was cut from."""

    def audio_files(self) -> set[str]:
        """All files that the images were cut from."""


class MelDataset:
    """A split of a finished mel dataset, local or on an object store: its size, its mel configuration, and any stretch of any epoch.

    Args:
        uri: The folder.
        split: The split to read.
        run: A run folder. If it holds a version of the dataset, that version is opened, also while parts are added.

    Raises:
        ValueError: The folder holds no finished dataset, or not the version of `run`.
    """

    mel_origin = f"its {MEL_CONFIG}"
    probe_file = MEL_CONFIG

    def __init__(self, uri: str, split: str = TRAIN_SPLIT, run: Folder | None = None) -> None:
        self.folder, self.split, self.run = Folder(uri), split, run
        self.added = 0
        kept = None if run is None else _read(run, DATASET_VERSION)
        self.digest, parts, self._index = self._finished() if kept is None else self._kept(kept)
        self.mel = MelConfig.from_json(self.folder.read(MEL_CONFIG).decode())
        self.groups = groups_of(parts, split)
        self.shards = list(dict.fromkeys(shard for shard, _, _ in self.groups))
        self.rows = sum(rows for _, _, rows in self.groups)
        self._open = lru_cache(maxsize=64)(self._opened)
        self._held: OrderedDict[int, tuple[list[bytes], list[str]]] = OrderedDict()

    def _finished(self) -> tuple[str, list[CommittedPart], bytes]:
        """Return the digest of the dataset as it is now, its parts, and its index."""
        try:
            summary, parts, index = commits.finished(self.folder)
        except FileNotFoundError:
            raise ValueError(
                f"dataset_name {self.folder.uri}: not a finished mel dataset (no {commits.SUCCESS}); make one with jobs/prepare.py"
            ) from None
        if summary.get("format_version") != DATASET_FORMAT_VERSION:
            stated = summary.get("format_version")
            raise ValueError(
                f"dataset_name {self.folder.uri}: format version {stated}, this version reads {DATASET_FORMAT_VERSION}"
            )
        digest = str(summary["digest"])
        return digest, parts, index

    def _kept(self, version: bytes) -> tuple[str, list[CommittedPart], bytes]:
        """Return the digest, the parts and the index of the version that a run began with."""
        digest, parts = digest_of(version), from_parquet(version)
        content = _read(self.folder, INDEX)
        present = list(parts_of(commits.committed(self.folder))) if content is None else from_parquet(content)
        digests = {part.path: part.sha256 for part in present}
        if lacking := next((part.path for part in parts if digests.get(part.path) != part.sha256), None):
            raise ValueError(
                f"dataset_name {self.folder.uri}: lacks {lacking} of the version {digest} that the run began with: name that dataset, or use another run folder"
            )
        kept = {part.path for part in parts}
        self.added = sum(sum(part.row_groups or []) for part in present if part.path not in kept)
        return digest, parts, version

    @property
    def version(self) -> bytes:
        """The file that a run keeps, to go on with the same rows when rows are added."""
        return with_digest(self._index, self.digest)

    def all_images(self) -> Images:
        """Every image in the order of the files (rows, y_res, x_res): for datasets that fit in memory."""
        return np.stack(
            [self.image(group, row) for group, (_, _, rows) in enumerate(self.groups) for row in range(rows)]
        )

    def column(self, name: str) -> list[Any]:
        """A column of all rows, in the order of the files."""
        return [value for shard in self.shards for value in self._open(shard).read(columns=[name])[name].to_pylist()]

    def audio_files(self) -> set[str]:
        """All files that the images were cut from."""
        return {
            name
            for shard in self.shards
            for name in self._open(shard).read(columns=["audio_file"])["audio_file"].unique().to_pylist()
        }

    def image(self, group: int, row: int) -> Images:
        """Return the image (y_res, x_res) at a row of a row group, an index into `groups`."""
        try:
            return decode_png(self._group(group)[0][row], (self.mel.y_res, self.mel.x_res))
        except ValueError as error:
            raise ValueError(f"{self.folder.uri}: row {row} of row group {group}: {error}") from error

    def audio_file(self, group: int, row: int) -> str:
        """The file that the image at a row of a row group was cut from."""
        return self._group(group)[1][row]

    def _group(self, group: int) -> tuple[list[bytes], list[str]]:
        if group not in self._held:
            shard, index, _ = self.groups[group]
            content = self._open(shard).read_row_group(index, columns=["image", "audio_file"])
            self._held[group] = (
                content["image"].combine_chunks().field("bytes").to_pylist(),
                content["audio_file"].to_pylist(),
            )
            while len(self._held) > HELD_ROW_GROUPS:
                self._held.popitem(last=False)
        self._held.move_to_end(group)
        return self._held[group]

    def _opened(self, shard: int) -> pq.ParquetFile:
        return pq.ParquetFile(self.folder.filesystem.open(self.folder.path(data_file(shard, self.split)), "rb"))
