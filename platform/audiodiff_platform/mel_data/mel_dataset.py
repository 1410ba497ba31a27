"""The format of a mel dataset, which prepare writes.

    DIR/mel_config.json            the seven mel parameters of diffusers
    DIR/prepare.json               format version, all other settings, digest
    DIR/README.md                  dataset card, by which `datasets.load_dataset(DIR)` finds the data
    DIR/data/train-NNNNNN.parquet  the slices (`slice_schema.py`); also validation-NNNNNN.parquet if tracks are held out
    DIR/quarantine/*.parquet       files that cannot be used, with the reason
    DIR/_plan, DIR/_commits        the commit protocol
    DIR/_index.parquet             the list of parts, by which the dataset is opened
    DIR/_SUCCESS                   written last

A part is one file of slices. Parts are only added, never changed, so the index identifies a version of the dataset. A
training run keeps the index with which it began as `dataset.parquet` in its folder (`DATASET_VERSION`). The run
continues with these parts even after more parts are added.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq

from audiodiff_core.embeddings.measured import ConditionName
from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.mel.png import decode_png
from audiodiff_core.mel.slices import Slicing
from audiodiff_platform.mel_data.feature_values import FeatureValues
from audiodiff_platform.mel_data.slice_schema import MEASURED, SliceFeatures
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.index import INDEX, CommittedPart, digest_of, from_parquet, parts_of, with_digest
from audiodiff_platform.storage.objects import CONCURRENT_REQUESTS

DATASET_FORMAT_VERSION = 1
MEL_CONFIG = "mel_config.json"
DATASET_SETTINGS = "prepare.json"

DATASET_VERSION = "dataset.parquet"

MAX_CACHED_ROW_GROUPS = 72  # see `sample_order.py`

TRAIN_SPLIT, VALIDATION_SPLIT = "train", "validation"

Place = tuple[int, int]
"""An index into the row groups of a dataset, and a row in the row group."""


def data_file(shard: int, split: str = TRAIN_SPLIT) -> str:
    """Return the path of the slices of a shard, relative to the dataset."""
    return f"data/{split}-{shard:06d}.parquet"


def is_measured(folder: Folder) -> bool:
    """Return whether the slices of a dataset are measured. True if there is no dataset yet."""
    return not folder.exists(DATASET_SETTINGS) or "measured" in folder.read_json(DATASET_SETTINGS)


def groups_of(parts: Iterable[CommittedPart], split: str) -> list[tuple[int, int, int]]:
    """Return the row groups of a split in order, each as (shard, index in the part, number of rows)."""
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


def card(mel: MelConfig, slicing: Slicing, splits: Sequence[str], summary: dict[str, Any], measured: bool) -> str:
    """Return the content of the dataset card.

    The front matter lists the data files for the `datasets` library. It also contains the digest, because the cache of
    `datasets` depends only on the front matter. Without the digest, `datasets` would read a dataset that has grown from
    its cache, without the new files.

    Args:
        mel: Mel configuration of the dataset.
        slicing: Options by which audio was cut into slices.
        splits: Names of the splits.
        summary: Counts and digest of the dataset.
        measured: Whether the dataset has the columns of measured features.
    """
    files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in splits)
    cut = ", ".join(f"{name} {value}" for name, value in slicing.model_dump().items() if value is not None)
    columns = "`tempo` (bpm), `key`, `loudness` (LUFS) and `brightness` (Hz) are measured of each slice.\n"
    return f"""---
configs:
- config_name: default
  description: digest {summary["digest"]}
  data_files:
{files}
---
# Mel dataset

{summary["slices"]} slices of {mel.slice_duration_s:.3f} s from {summary["files"] - summary["quarantined"]} files, as \
{mel.x_res}x{mel.y_res} log-mel images at {mel.sample_rate} Hz, hop length {mel.hop_length}, n_fft {mel.n_fft}; {cut}.
{summary["validation_slices"]} of the slices are held out for validation, by track. \
{summary["quarantined"]} other files cannot be used (`quarantine/`), {summary["duplicates"]} are duplicates.
{columns if measured else ""}Digest `{summary["digest"]}`.
"""


class TrainingImages(Protocol):
    """Mel images by their place in a dataset of any format (`original_datasets.open_dataset`)."""

    mel: MelConfig
    mel_origin: str
    """Source of `mel`, in words."""
    rows: int
    groups: list[tuple[int, int, int]]
    """Rows that are read together, each group as (shard, row group in the shard, number of rows)."""
    probe_file: str
    """A file of the dataset that each node looks for, to check that it can read the dataset."""
    added: int
    """Number of rows that were added since the run began. They are not read."""

    @property
    def digest(self) -> str:
        """Digest of the content."""

    @property
    def version(self) -> bytes | None:
        """Index of the dataset, or None for a format without an index.

        A training run keeps the index, so that the run continues with the same rows after others are added.
        """

    def image(self, group: int, row: int) -> Images:
        """Return an image (y_res, x_res).

        Args:
            group: Index into `groups`.
            row: Row in the row group.
        """

    def audio_file(self, group: int, row: int) -> str:
        """Return the file from which the slice of an image was cut."""

    def audio_files(self) -> set[str]:
        """Return all files from which slices were cut."""

    @property
    def measured(self) -> bool:
        """True if the dataset has the columns of measured features."""

    def features(self, group: int, row: int) -> SliceFeatures:
        """Return the measured features of a slice. The dataset must be `measured`."""

    def feature_values(self, names: Sequence[ConditionName]) -> dict[ConditionName, FeatureValues]:
        """Return the values of measured features by name. The dataset must be `measured`.

        Raises:
            ValueError: A column holds other values than features.
        """


class MelDataset:
    """One split of a finished mel dataset. The most recently used row groups are cached.

    Args:
        uri: Folder of the dataset.
        split: Split to read.
        run: Folder of a training run. If it holds a version of the dataset, this version is opened, even while parts
            are added.

    Raises:
        ValueError: The folder holds no finished dataset, or lacks parts of the version of `run`.
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
        self._open = lru_cache(maxsize=64)(self._open_shard)
        self._cached: OrderedDict[int, tuple[list[bytes], list[str]]] = OrderedDict()
        self._group_features = lru_cache(MAX_CACHED_ROW_GROUPS)(self._read_features)

    def _finished(self) -> tuple[str, list[CommittedPart], bytes]:
        """Return the present digest, parts and index of the dataset."""
        try:
            summary, parts, index = commits.finished(self.folder)
        except FileNotFoundError:
            raise ValueError(
                f"dataset_name {self.folder.uri}: not a finished mel dataset (no {commits.SUCCESS}): "
                "run jobs/prepare.py to its end"
            ) from None
        if summary.get("format_version") != DATASET_FORMAT_VERSION:
            stated = summary.get("format_version")
            raise ValueError(
                f"dataset_name {self.folder.uri}: format version {stated}, must be {DATASET_FORMAT_VERSION}"
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
                f"dataset_name {self.folder.uri}: lacks {lacking} of the version {digest} that the run began with: "
                "set dataset_name to the dataset of this run, or use another run folder"
            )
        kept = {part.path for part in parts}
        self.added = sum(sum(part.row_groups or []) for part in present if part.path not in kept)
        return digest, parts, version

    @property
    def version(self) -> bytes:
        """Index of the dataset with its digest. See `TrainingImages.version`."""
        return with_digest(self._index, self.digest)

    def all_images(self) -> Images:
        """Return all images (rows, y_res, x_res) in the order of `groups`. They must fit in memory."""
        return np.stack(
            [self.image(group, row) for group, (_, _, rows) in enumerate(self.groups) for row in range(rows)]
        )

    def column(self, name: str) -> list[Any]:
        """Return a column of all rows, in the order of `groups`."""
        return [value for shard in self.shards for value in self._open(shard).read(columns=[name])[name].to_pylist()]

    def audio_files(self) -> set[str]:
        """Return all files from which slices were cut."""
        return {
            name
            for shard in self.shards
            for name in self._open(shard).read(columns=["audio_file"])["audio_file"].unique().to_pylist()
        }

    def image(self, group: int, row: int) -> Images:
        """Return an image (y_res, x_res). See `TrainingImages.image`."""
        try:
            return decode_png(self._group(group)[0][row], (self.mel.y_res, self.mel.x_res))
        except ValueError as error:
            raise ValueError(f"{self.folder.uri}: row {row} of row group {group}: {error}") from error

    def audio_file(self, group: int, row: int) -> str:
        """Return the file from which the slice of an image was cut."""
        return self._group(group)[1][row]

    @property
    def measured(self) -> bool:
        """True if the dataset has the columns of measured features."""
        return set(MEASURED) <= set(self._open(self.shards[0]).schema_arrow.names)

    def features(self, group: int, row: int) -> SliceFeatures:
        """Return the measured features of a slice. See `TrainingImages.features`."""
        return self._group_features(group)[row]

    def feature_values(self, names: Sequence[ConditionName]) -> dict[ConditionName, FeatureValues]:
        """Read the statistics of the row groups. See `TrainingImages.feature_values`."""
        found = {name: FeatureValues(f"dataset_name {self.folder.uri}", name) for name in names}
        with ThreadPoolExecutor(1 if self.folder.is_local else CONCURRENT_REQUESTS) as pool:
            for footer in pool.map(lambda shard: self._open_shard(shard).metadata, self.shards):
                for values in found.values():
                    values.add_statistics(footer)
        return found

    def _read_features(self, group: int) -> list[SliceFeatures]:
        shard, index, _ = self.groups[group]
        rows: list[SliceFeatures] = self._open(shard).read_row_group(index, columns=list(MEASURED)).to_pylist()
        return rows

    def _group(self, group: int) -> tuple[list[bytes], list[str]]:
        if group not in self._cached:
            shard, index, _ = self.groups[group]
            content = self._open(shard).read_row_group(index, columns=["image", "audio_file"])
            self._cached[group] = (
                content["image"].combine_chunks().field("bytes").to_pylist(),
                content["audio_file"].to_pylist(),
            )
            while len(self._cached) > MAX_CACHED_ROW_GROUPS:
                self._cached.popitem(last=False)
        self._cached.move_to_end(group)
        return self._cached[group]

    def _open_shard(self, shard: int) -> pq.ParquetFile:
        return pq.ParquetFile(self.folder.filesystem.open(self.folder.path(data_file(shard, self.split)), "rb"))
