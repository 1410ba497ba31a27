"""Addition of evaluation metrics to saved models."""

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from audiodiff_core.checkpoint import card
from audiodiff_core.checkpoint.load import load_model
from audiodiff_core.files.filesystems import filesystem_of
from audiodiff_core.files.model_files import RECORD, CheckpointError

CARD = "README.md"


def record_metrics(folder: str | Path, metrics: Mapping[str, float]) -> None:
    """Add metrics to the record and the card of a saved model.

    Metrics of the same name are replaced. Metrics that are not finite are skipped, since JSON does not support them.
    Each file is replaced atomically: first the record, then the card.

    Args:
        folder: A local folder or an fsspec URI.
        metrics: Values by name.

    Raises:
        CheckpointError: If `folder` is not a model, or the model has no record.
    """
    if "://" not in str(folder) and not Path(folder).is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    model = load_model(folder)
    if model.record is None:
        raise CheckpointError(
            f"{folder}: {RECORD}, which stores the metrics, is missing: "
            "create it with `python -m audiodiff_core.checkpoint SOURCE DESTINATION`"
        )
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    record = model.record.model_copy(update={"metrics": {**model.record.metrics, **finite}})
    _replace(f"{folder}/{RECORD}", record.model_dump_json(indent=2) + "\n")
    _replace(f"{folder}/{CARD}", card.text(model.unet, model.scheduler, model.mel, model.vae, record))


def _replace(target: str, text: str) -> None:
    if "://" in target:  # object stores replace objects atomically
        filesystem, path = filesystem_of(target)
        filesystem.pipe_file(path, text.encode())
        return
    with tempfile.TemporaryDirectory(prefix=".audiodiff-", dir=Path(target).parent) as scratch:
        (Path(scratch) / "new").write_text(text)
        os.replace(Path(scratch) / "new", target)
