"""What an evaluation found, written into the model that it is of."""

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
    """Adds the finite metrics to the record and the card of the model in a folder, local or of an fsspec URI; those of the same name are replaced.

    Each of the two files is whole at any time, the record first. Raises CheckpointError where there is no model, or one that has no record.
    """
    if "://" not in str(folder) and not Path(folder).is_dir():
        raise CheckpointError(f"{folder}: no such folder to write metrics into")
    model = load_model(folder)
    if model.record is None:
        raise CheckpointError(
            f"{folder}: has no {RECORD} to write metrics into: `python -m audiodiff_core.checkpoint SOURCE DESTINATION` gives it one"
        )
    found = {name: value for name, value in metrics.items() if math.isfinite(value)}  # JSON has no others
    record = model.record.model_copy(update={"metrics": {**model.record.metrics, **found}})
    _replace(f"{folder}/{RECORD}", record.model_dump_json(indent=2) + "\n")
    _replace(f"{folder}/{CARD}", card.text(model.unet, model.scheduler, model.mel, model.vae, record))


def _replace(target: str, text: str) -> None:
    if "://" in target:  # an object is there whole or not at all
        filesystem, path = filesystem_of(target)
        filesystem.pipe_file(path, text.encode())
        return
    with tempfile.TemporaryDirectory(prefix=".audiodiff-", dir=Path(target).parent) as scratch:
        (Path(scratch) / "new").write_text(text)
        os.replace(Path(scratch) / "new", target)
