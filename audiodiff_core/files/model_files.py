"""File names in model folders, and a reader for their JSON files."""

import json
from pathlib import Path
from typing import Any

MODEL_INDEX = "model_index.json"
RECORD = "audiodiff.json"
CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
MEL_CONFIG = "mel/mel_config.json"

AUTOENCODER_KEYS = ("vqvae", "vae")
"""Names of the autoencoder's folder and index entry. Saved models use the first name."""

MAX_JSON_BYTES = 1 << 20


class CheckpointError(ValueError):
    """Error for a model that cannot be read or is not supported. The message is one line."""


def read_json(root: Path, name: str) -> dict[str, Any]:
    """Read a JSON object from the file `name` in the folder `root`.

    Raises:
        CheckpointError: If the file is missing, has more than MAX_JSON_BYTES bytes, or is not a JSON object.
    """
    file = root / name
    if not file.is_file():
        folder = "not a" if name == MODEL_INDEX else "incomplete"
        raise CheckpointError(f"{folder} model folder: {name} is missing")
    if (size := file.stat().st_size) > MAX_JSON_BYTES:
        raise CheckpointError(f"{name} has {size:,} bytes: must be at most {MAX_JSON_BYTES:,}")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{name} is not a JSON object")
    return content
