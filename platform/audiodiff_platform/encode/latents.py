"""Worker of encode that computes latents of a mel dataset, in the format of `mel_data/latents.py`."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.checkpoint import load_vae
from audiodiff_core.latents import latent_shape
from audiodiff_core.latents.posteriors import Moments, moments_in_batches
from audiodiff_core.mel.png import decode_png
from audiodiff_core.models import network_digest
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_platform.mel_data.latents import schema
from audiodiff_platform.mel_data.mel_dataset import TRAIN_SPLIT, VALIDATION_SPLIT, MelDataset, data_file
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Counts, Record


class LatentsWorker:
    """A worker that encodes shards with one loaded autoencoder.

    Args:
        dataset_name: The folder of the mel dataset.
        output_dir: The folder of the latents.
        vae: The folder, URI or Hugging Face id of the autoencoder.
        vae_digest: The digest of the autoencoder at the start of the job.
        batch_size: The number of images per call of the autoencoder.

    Raises:
        ValueError: The autoencoder has changed since the start of the job.
    """

    def __init__(self, dataset_name: str, output_dir: str, vae: str, vae_digest: str, batch_size: int) -> None:
        self.dataset, self.output, self.batch_size = MelDataset(dataset_name), Folder(output_dir), batch_size
        profile = ExecutionProfile.here()
        profile.prepare_process()
        self.vae = load_vae(vae).to(profile.device).eval()
        if (digest := network_digest(self.vae)) != vae_digest:
            raise ValueError(
                f"vae {vae} has changed since the job began (digest {digest}, was {vae_digest}): "
                "restore it and run the command again"
            )
        self.shape = latent_shape(self.vae, self.dataset.mel.y_res, self.dataset.mel.x_res)
        self.schema = schema(self.shape, vae_digest)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Write the latents of both splits of a shard, and return its commit record."""
        record: dict[str, Any] = {}
        parts: dict[str, str] = {}
        sizes: dict[str, int] = {}
        with self.output.scratch() as scratch:
            for split in (TRAIN_SPLIT, VALIDATION_SPLIT):
                name = data_file(shard, split)
                row_groups = (
                    self._encoded(name, scratch / "part.parquet", attempts) if self.dataset.folder.exists(name) else []
                )
                record[split] = {"rows": sum(row_groups), "row_groups": row_groups}
                if row_groups:
                    attempts.require_ownership()
                    parts[name] = commits.file_sha256(scratch / "part.parquet")
                    sizes[name] = (scratch / "part.parquet").stat().st_size
                    self.output.move_in(scratch / "part.parquet", name)
        rows = sum(record[split]["rows"] for split in (TRAIN_SPLIT, VALIDATION_SPLIT))
        return {**record, "rows": rows, "parts": parts, "sizes": sizes}

    def _encoded(self, name: str, target: Path, attempts: Attempts) -> list[int]:
        """Write the latents of a part of the mel dataset; return the number of rows of each row group."""
        rows = []
        folder, shape = self.dataset.folder, (self.dataset.mel.y_res, self.dataset.mel.x_res)
        with (
            folder.filesystem.open(folder.path(name), "rb") as file,
            pq.ParquetFile(file) as part,
            pq.ParquetWriter(target, self.schema) as writer,
        ):
            for group in range(part.num_row_groups):
                attempts.require_running()
                table = part.read_row_group(group, columns=["image", "audio_file", "slice"])
                images = np.stack([decode_png(cell["bytes"], shape) for cell in table["image"].to_pylist()])
                writer.write_table(self._table(table, moments_in_batches(self.vae, images, self.batch_size)))
                rows.append(len(images))
        return rows

    def _table(self, slices: pa.Table, moments: Moments) -> pa.Table:
        """Return a table of latents.

        Args:
            slices: The slices, with the columns `audio_file` and `slice`.
            moments: The moments (n, 2, channels, height, width) of the posteriors of the slices.
        """
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(moments[:, index].reshape(-1)), moments[0, 0].size)
            for index in (0, 1)
        ]
        return pa.table([slices["audio_file"], slices["slice"], *columns], schema=self.schema)


def encoded(record: Record) -> Counts:
    """Return the progress counts of a commit record: the number of encoded slices."""
    return {"slices": record["rows"]}
