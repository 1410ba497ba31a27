"""File names and JSON files of model folders."""

import json
from pathlib import Path
from typing import Any

MODEL_INDEX = "model_index.json"
RECORD = "audiodiff.json"
CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
MEL_CONFIG = "mel/mel_config.json"
AUTOENCODER_KEYS = ("vqvae", "vae")
LARGEST_JSON = 1 << 20


class CheckpointError(ValueError):
    """What is not a model of ours or of the original's, with what is wrong in one line."""


def read_json(root: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file `name` below `root`, of at most LARGEST_JSON bytes."""
    file = root / name
    if not file.is_file():
        raise CheckpointError(f"is not a {'' if name == MODEL_INDEX else 'whole '}model folder: it holds no {name}")
    if (size := file.stat().st_size) > LARGEST_JSON:
        raise CheckpointError(f"{name} has {size:,} bytes, {LARGEST_JSON:,} are read")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{name} is not a JSON object")
    return content
