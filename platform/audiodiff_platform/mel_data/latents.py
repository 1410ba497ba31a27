"""The format of precomputed latents, which `encode --latents` writes.

Training on precomputed latents does not run the VAE.

    DIR/encode.json                format version, digests of the mel dataset and of the VAE, digest of the latents
    DIR/mel_config.json            mel configuration of the mel dataset
    DIR/data/train-NNNNNN.parquet  one row per slice; also validation-NNNNNN.parquet if the mel dataset has one
    DIR/_commits, DIR/_SUCCESS     the commit protocol; _SUCCESS holds `digest`

Shards, row groups and rows correspond to those of the mel dataset, so that training reads the same samples in the same
order.

The columns are `audio_file` (string), `slice` (int32), and the posterior of the VAE as `mean` and `std`. Both are
fixed-size lists of channels * height * width float32 values in row-major order. The values are the output of the VAE,
without scaling_factor. A sample is scaling_factor * (mean + std * noise). The metadata of the schema states
`audiodiff_latent_shape` (JSON, [channels, height, width]) and `audiodiff_vae_digest`.
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

ENCODE_FORMAT_VERSION = 1
ENCODE_SETTINGS = "encode.json"
LATENT_SHAPE, VAE_DIGEST = b"audiodiff_latent_shape", b"audiodiff_vae_digest"
MAX_CACHED_ROW_GROUPS = 72  # see `sample_order.py`


def schema(shape: tuple[int, int, int], vae_digest: str) -> pa.Schema:
    """Return the schema of a data file.

    Args:
        shape: Shape of a latent (channels, height, width).
        vae_digest: Digest of the VAE.
    """
    values = pa.list_(pa.float32(), int(np.prod(shape)))
    return pa.schema(
        [("audio_file", pa.string()), ("slice", pa.int32()), ("mean", values), ("std", values)],
        metadata={LATENT_SHAPE: json.dumps(shape).encode(), VAE_DIGEST: vae_digest.encode()},
    )


class LatentsDataset:
    """One split of finished latents, read by row groups. The most recently used row groups are cached.

    Args:
        uri: Folder of the latents.
        split: Split to read.

    Raises:
        ValueError: The folder holds no finished latents, or latents of another format version.
    """

    mel_origin = f"its {MEL_CONFIG}"
    probe_file = commits.SUCCESS

    def __init__(self, uri: str, split: str = TRAIN_SPLIT) -> None:
        self.folder = Folder(uri)
        self._split = split
        try:
            summary, parts, _ = commits.finished(self.folder)
        except FileNotFoundError:
            raise ValueError(
                f"latents {uri}: not finished latents (no {commits.SUCCESS}): run jobs/encode.py --latents to its end"
            ) from None
        if summary.get("format_version") != ENCODE_FORMAT_VERSION or "latent_shape" not in summary:
            raise ValueError(
                f"latents {uri}: not latents of format version {ENCODE_FORMAT_VERSION}, the version that can be read"
            )
        self.digest: str = summary["digest"]
        self.dataset_digest: str = summary["dataset_digest"]
        self.vae_digest: str = summary["vae_digest"]
        channels, height, width = summary["latent_shape"]
        self.shape = (int(channels), int(height), int(width))
        self.mel = MelConfig.from_json(self.folder.read(MEL_CONFIG).decode())
        self.groups = groups_of(parts, split)
        self.rows = sum(rows for _, _, rows in self.groups)
        self._open = lru_cache(maxsize=64)(self._open_shard)
        self._cached: OrderedDict[int, tuple[list[str], Moments]] = OrderedDict()

    def moments(self, group: int, row: int) -> Moments:
        """Return the mean and the standard deviation (2, channels, height, width) of a latent.

        Args:
            group: Index into `groups`.
            row: Row in the row group.
        """
        moments: Moments = self._group(group)[1][row]
        return moments

    def audio_file(self, group: int, row: int) -> str:
        """Return the file from which the slice of a latent was cut."""
        return self._group(group)[0][row]

    def _group(self, group: int) -> tuple[list[str], Moments]:
        if group not in self._cached:
            shard, index, rows = self.groups[group]
            table = self._open(shard).read_row_group(index, columns=["audio_file", "mean", "std"]).combine_chunks()
            columns = [table[name].combine_chunks().flatten().to_numpy() for name in ("mean", "std")]
            if any(len(values) != rows * np.prod(self.shape) for values in columns):
                raise ValueError(f"{self.folder.uri}: shard {shard} holds latents of another shape than {self.shape}")
            self._cached[group] = (
                table["audio_file"].to_pylist(),
                np.stack([values.reshape(rows, *self.shape) for values in columns], axis=1),
            )
            while len(self._cached) > MAX_CACHED_ROW_GROUPS:
                self._cached.popitem(last=False)
        self._cached.move_to_end(group)
        return self._cached[group]

    def _open_shard(self, shard: int) -> Any:
        return pq.ParquetFile(self.folder.filesystem.open(self.folder.path(data_file(shard, self._split)), "rb"))
