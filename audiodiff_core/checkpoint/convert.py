"""Conversion of models and autoencoders to the layout that audiodiff saves."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from audiodiff_core.checkpoint.load import is_autoencoder, local_files, read_model, read_vae
from audiodiff_core.checkpoint.record import ModelRecord
from audiodiff_core.checkpoint.save import save_model, save_vae, upload_model
from audiodiff_core.files.filesystems import filesystem_of
from audiodiff_core.files.model_files import RECORD


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        kind: "model" or "autoencoder".
        changes: Differences between source and destination, one line each.
    """

    kind: str
    changes: list[str]


def convert(source: str | Path, destination: str | Path, *, float16: bool = False) -> Conversion:
    """Convert a model, an autoencoder or a CompVis LDM checkpoint to the layout that audiodiff saves.

    A model without an audiodiff record gets a record that names the source.

    Args:
        source: See `load_model` and `load_vae`.
        destination: A folder or fsspec URI that does not exist.
        float16: Whether to save the weights in half precision.

    Raises:
        CheckpointError: If the source cannot be loaded.
        ValueError: If the destination exists.
    """
    filesystem, path = filesystem_of(str(destination))
    if filesystem.exists(path):
        raise ValueError(f"destination {destination} already exists: choose a new folder")
    changes: list[str] = []
    with local_files(source) as local_path:
        model = None if is_autoencoder(local_path) else read_model(local_path, changes)
        vae = None if model else read_vae(local_path, changes)
    with tempfile.TemporaryDirectory(prefix="audiodiff-converted-") as scratch:
        remote = "://" in str(destination)
        folder = Path(scratch) / "model" if remote else Path(destination)
        if float16:
            for network in (model.unet, model.vae) if model else (vae,):
                if network is not None:
                    network.half()
        if model:
            record = model.record or _record(str(source), model.digest, changes)
            save_model(folder, model.unet, model.scheduler, model.mel, record, vae=model.vae)
        else:
            save_vae(folder, vae)
        if remote:
            upload_model(folder, str(destination))
    return Conversion("model" if model else "autoencoder", changes)


def _record(source: str, digest: str, changes: list[str]) -> ModelRecord:
    """Create a record for a source without a record, with the digest and the name (without path)."""
    changes.append(f"{RECORD}: added, with the source's digest {digest}")
    return ModelRecord(
        recipe={"converted_from": source.rstrip("/").rpartition("/")[2], "source_digest": digest},
        data_digest="unknown",
        metrics={},
    )
