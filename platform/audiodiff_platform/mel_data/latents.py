"""The latents of a mel dataset on disk, computed once by `encode --latents` so that training need not run the VAE.

    DIR/encode.json                format version, digests of the mel dataset and of the VAE, digest
    DIR/mel_config.json            that of the mel dataset
    DIR/data/train-NNNNNN.parquet  a row for each slice; validation-NNNNNN.parquet where the mel dataset has one. Shards, row groups and
                                   rows are those of the mel dataset, in its order: training sees the same samples in the same order
    DIR/_commits, DIR/_SUCCESS     the commit protocol; _SUCCESS holds `digest`

Columns: `audio_file` string, `slice` int32, and the posterior of the VAE, `mean` and `std`, each a fixed-size list of float32 of
channels * height * width values (row-major). They are as the VAE gives them: scaling_factor is not applied. A sample is
scaling_factor * (mean + std * noise). The schema's metadata states `audiodiff_latent_shape` (JSON, [channels, height, width])
and `audiodiff_vae_digest`.
"""

import json
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.latents.posteriors import Moments
from audiodiff_core.mel import MelConfig
from audiodiff_platform.mel_data.mel_dataset import MEL_CONFIG, TRAIN_SPLIT, data_file, groups_of
from audiodiff_platform.storage import Folder, commits

LATENTS_FORMAT_VERSION = 1
LATENTS_SETTINGS = "encode.json"
LATENT_SHAPE, VAE_DIGEST = b"audiodiff_latent_shape", b"audiodiff_vae_digest"
HELD_ROW_GROUPS = 72


def schema(shape: tuple[int, int, int], vae_digest: str) -> pa.Schema:
    """Of a part: latents of `shape` (channels, height, width) by the VAE of that digest."""
    values = pa.list_(pa.float32(), int(np.prod(shape)))
    return pa.schema(
        [("audio_file", pa.string()), ("slice", pa.int32()), ("mean", values), ("std", values)],
        metadata={LATENT_SHAPE: json.dumps(shape).encode(), VAE_DIGEST: vae_digest.encode()},
    )


class LatentsDataset:
    """One split of finished latents, read in row groups, of which few are held."""

    mel_origin = f"its {MEL_CONFIG}"
    probe_file = commits.SUCCESS

    def __init__(self, uri: str, split: str = TRAIN_SPLIT) -> None:
        self.folder = Folder(uri)
        self._split = split
        try:
            summary, parts, _ = commits.finished(self.folder)
        except FileNotFoundError:
            raise ValueError(
                f"latents {uri}: not finished latents (no {commits.SUCCESS}); make them with jobs/encode.py --latents"
            ) from None
        if summary.get("format_version") != LATENTS_FORMAT_VERSION or "latent_shape" not in summary:
            raise ValueError(
                f"latents {uri}: not latents of format version {LATENTS_FORMAT_VERSION}, which this version reads"
            )
        self.digest: str = summary["digest"]
        self.dataset_digest: str = summary["dataset_digest"]
        self.vae_digest: str = summary["vae_digest"]
        channels, height, width = summary["latent_shape"]
        self.shape = (int(channels), int(height), int(width))
        self.mel = MelConfig.from_json(self.folder.read(MEL_CONFIG).decode())
        self.groups = groups_of(parts, split)
        self.rows = sum(rows for _, _, rows in self.groups)
        self._open = lru_cache(maxsize=64)(self._opened)
        self._held: OrderedDict[int, tuple[list[str], Moments]] = OrderedDict()

    def moments(self, group: int, row: int) -> Moments:
        """Mean and standard deviation (2, channels, height, width) of the latent at a row of a row group, an index into `groups`."""
        moments: Moments = self._group(group)[1][row]
        return moments

    def audio_file(self, group: int, row: int) -> str:
        """The file that the latent's slice was cut from."""
        return self._group(group)[0][row]

    def _group(self, group: int) -> tuple[list[str], Moments]:
        if group not in self._held:
            shard, index, rows = self.groups[group]
            table = self._open(shard).read_row_group(index, columns=["audio_file", "mean", "std"]).combine_chunks()
            columns = [table[name].combine_chunks().flatten().to_numpy() for name in ("mean", "std")]
            if any(len(values) != rows * np.prod(self.shape) for values in columns):
                raise ValueError(f"{self.folder.uri}: latents of another shape than {self.shape}")
            self._held[group] = (
                table["audio_file"].to_pylist(),
                np.stack([values.reshape(rows, *self.shape) for values in columns], axis=1),
            )
            while len(self._held) > HELD_ROW_GROUPS:
                self._held.popitem(last=False)
        self._held.move_to_end(group)
        return self._held[group]

    def _opened(self, shard: int) -> Any:
        return pq.ParquetFile(self.folder.filesystem.open(self.folder.path(data_file(shard, self._split)), "rb"))
