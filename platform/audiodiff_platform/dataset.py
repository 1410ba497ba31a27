"""The mel dataset on disk, and the order in which training reads it.

    DIR/mel_config.json            diffusers' seven mel parameters
    DIR/prepare.json               format version, all other settings, digest
    DIR/README.md                  dataset card, by which `datasets.load_dataset(DIR)` finds the data
    DIR/data/train-NNNNNN.parquet  the slices (`SCHEMA`)
    DIR/quarantine/*.parquet       files that could not be used, with the reason
    DIR/_plan, DIR/_commits        the commit protocol; DIR/_SUCCESS last

The order is a function of (seed, epoch) alone. Row groups are permuted and laid end to end; the sequence is cut into STREAMS equal
parts; each part is shuffled within windows; sample i of the epoch is the next of stream i mod STREAMS. A worker of w (w divides
STREAMS) owns every w-th stream, so it reads its own row groups (two neighbours may share the one at their border), any place in an
epoch is found by arithmetic, and memory holds a window per stream, whatever the dataset's size.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.slices import decode_png
from audiodiff_core.training import TrainBatch
from audiodiff_platform import commits
from audiodiff_platform.storage import Folder

FORMAT_VERSION = 1
MEL_CONFIG = "mel_config.json"
SETTINGS = "prepare.json"

STREAMS = 24
WINDOW_ROWS = 256

_FEATURES = {
    "image": {"_type": "Image"},
    "audio_file": {"dtype": "string", "_type": "Value"},
    "slice": {"dtype": "int32", "_type": "Value"},
    "source_sha256": {"dtype": "string", "_type": "Value"},
    "start_s": {"dtype": "float64", "_type": "Value"},
    "duration_s": {"dtype": "float64", "_type": "Value"},
    "reference_db": {"dtype": "float32", "_type": "Value"},
}
SCHEMA = pa.schema(
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


def data_file(shard: int) -> str:
    return f"data/train-{shard:06d}.parquet"


def card(mel: MelConfig, overlap: float, summary: dict[str, Any]) -> str:
    """The dataset card, whose front matter tells `datasets` which files are data."""
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---
# Mel dataset

{summary["slices"]} slices of {mel.slice_duration_s:.3f} s from {summary["files"]} files ({summary["quarantined"]} more could not be used: `quarantine/`),
as {mel.x_res}x{mel.y_res} log-mel images at {mel.sample_rate} Hz, hop length {mel.hop_length}, n_fft {mel.n_fft}, overlap {overlap:g}.
Digest `{summary["digest"]}`.
"""


class MelDataset:
    """A finished mel dataset, local or on an object store: its size, its mel configuration, and any stretch of any epoch."""

    def __init__(self, uri: str) -> None:
        self.folder = Folder(uri)
        if not self.folder.exists(commits.SUCCESS):
            raise ValueError(f"dataset_name {uri}: not a finished mel dataset (no {commits.SUCCESS}); make one with jobs/prepare.py")
        summary = self.folder.read_json(commits.SUCCESS)
        if summary.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"dataset_name {uri}: format version {summary.get('format_version')}, this version reads {FORMAT_VERSION}")
        self.digest: str = summary["digest"]
        self.mel = MelConfig.from_json(self.folder.read(MEL_CONFIG).decode())
        records = commits.committed(self.folder)
        self.shards = [shard for shard in sorted(records) if records[shard]["rows"]]
        self._groups = [
            (shard, group, rows) for shard in self.shards for group, rows in enumerate(records[shard]["row_groups"])
        ]
        self.rows = sum(rows for _, _, rows in self._groups)
        self._held: OrderedDict[int, list[bytes]] = OrderedDict()

    def batch(self, seed: int, numbers: Sequence[int]) -> TrainBatch:
        """The samples of those numbers: training counts them through all epochs, number = epoch * rows + place in the epoch."""
        group_rows = tuple(rows for _, _, rows in self._groups)
        orders = {epoch: _Order(group_rows, seed, epoch) for epoch in {number // self.rows for number in numbers}}
        images = [self._image(*orders[number // self.rows].locate(number % self.rows)) for number in numbers]
        return TrainBatch(numbers, np.stack(images))

    def all_images(self) -> Images:
        """Every image in the order of the files (rows, y_res, x_res): for datasets that fit in memory."""
        return np.stack([self._image(group, row) for group, (_, _, rows) in enumerate(self._groups) for row in range(rows)])

    def column(self, name: str) -> list[Any]:
        """A column of all rows, in the order of the files."""
        return [value for shard in self.shards for value in self._open(shard).read(columns=[name])[name].to_pylist()]

    def _image(self, group: int, row: int) -> Images:
        if group not in self._held:
            shard, index, _ = self._groups[group]
            content = self._open(shard).read_row_group(index, columns=["image"])
            self._held[group] = content["image"].combine_chunks().field("bytes").to_pylist()
            while len(self._held) > 3 * STREAMS:
                self._held.popitem(last=False)
        self._held.move_to_end(group)
        image = decode_png(self._held[group][row])
        if image.shape != (self.mel.y_res, self.mel.x_res):
            raise ValueError(f"{self.folder.uri}: image of {image.shape} in a dataset of {(self.mel.y_res, self.mel.x_res)}")
        return image

    @lru_cache(maxsize=64)  # noqa: B019  a dataset lives as long as its process
    def _open(self, shard: int) -> pq.ParquetFile:
        return pq.ParquetFile(self.folder.filesystem.open(self.folder.path(data_file(shard)), "rb"))


class _Order:
    """Where sample i of an epoch lies, by the rule in the module's docstring."""

    def __init__(self, group_rows: tuple[int, ...], seed: int, epoch: int) -> None:
        self.key = (seed, epoch)
        self.groups, self.ends = _permuted(group_rows, seed, epoch)
        self.total = int(self.ends[-1])

    def locate(self, sample: int) -> tuple[int, int]:
        """(row group, row in it) of a sample in [0, total)."""
        stream, place = sample % STREAMS, sample // STREAMS
        first = stream * (self.total // STREAMS) + min(stream, self.total % STREAMS)
        length = (self.total - stream + STREAMS - 1) // STREAMS
        window = place // WINDOW_ROWS
        size = min(WINDOW_ROWS, length - window * WINDOW_ROWS)
        position = first + window * WINDOW_ROWS + int(_shuffled(*self.key, stream, window, size)[place % WINDOW_ROWS])
        group = int(np.searchsorted(self.ends, position, side="right"))
        return int(self.groups[group]), position - (int(self.ends[group - 1]) if group else 0)


@lru_cache(maxsize=2)
def _permuted(group_rows: tuple[int, ...], seed: int, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row groups in the epoch's order, and where each ends in the sequence of all rows."""
    groups = np.random.default_rng([seed, epoch]).permutation(len(group_rows))
    return groups, np.array(list(accumulate(group_rows[group] for group in groups)), np.int64)


@lru_cache(maxsize=2 * STREAMS)
def _shuffled(seed: int, epoch: int, stream: int, window: int, size: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, stream, window]).permutation(size)
