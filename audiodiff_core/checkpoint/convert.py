"""A model of any layout, or an autoencoder alone, -> the layout that is written here, and what that changed."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from audiodiff_core.checkpoint.load import is_autoencoder, opened, read_model, read_vae
from audiodiff_core.checkpoint.record import ModelRecord
from audiodiff_core.checkpoint.save import save_model, save_vae, upload_model
from audiodiff_core.files.filesystems import filesystem_of
from audiodiff_core.files.model_files import RECORD


@dataclass(frozen=True)
class Conversion:
    """What was written (`model` or `autoencoder`) and, a line each, how it differs from what was read."""

    kind: str
    changes: list[str]


def convert(source: str | Path, destination: str | Path) -> Conversion:
    """Reads `source` (as `load_model` or, where it is an autoencoder alone or a CompVis LDM checkpoint, `load_vae`) and writes `destination`,
    a folder or fsspec URI that must not exist yet.

    A model without audiodiff's record gets one that names the source. Raises CheckpointError for a source that cannot be loaded, ValueError for
    a destination that exists.
    """
    filesystem, path = filesystem_of(str(destination))
    if filesystem.exists(path):
        raise ValueError(f"destination {destination} exists: name a folder that does not")
    changes: list[str] = []
    with opened(source) as place:
        whole = None if is_autoencoder(place) else read_model(place, changes)
        vae = None if whole else read_vae(place, changes)
    with tempfile.TemporaryDirectory(prefix="audiodiff-converted-") as scratch:
        remote = "://" in str(destination)
        folder = Path(scratch) / "model" if remote else Path(destination)
        if whole:
            record = whole.record or _record(str(source), whole.digest, changes)
            save_model(folder, whole.unet, whole.scheduler, whole.mel, record, vae=whole.vae)
        else:
            save_vae(folder, vae)
        if remote:
            upload_model(folder, str(destination))
    return Conversion("model" if whole else "autoencoder", changes)


def _record(source: str, digest: str, changes: list[str]) -> ModelRecord:
    """Where a model comes from that audiodiff did not train: its name, without the path to it, and digest."""
    changes.append(f"{RECORD}: added, naming the source's digest {digest}")
    return ModelRecord(
        recipe={"converted_from": source.rstrip("/").rpartition("/")[2], "source_digest": digest},
        data_digest="unknown",
        metrics={},
    )
