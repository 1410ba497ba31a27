"""Folder of an encoder: local, or a copy of a repository on the Hugging Face Hub."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from audiodiff_core.files.hub_names import repository_name


def local_folder(source: str) -> Path:
    """Return the folder `source`, or a copy of the repository on the Hub, with the weights that loading prefers."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from audiodiff_core.files.source import download_weights
    from audiodiff_core.files.weight_files import DIFFUSERS, TRANSFORMERS

    name = encoder_repository(source)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"encoder {source}: no such folder, and not a Hugging Face id (OWNER/NAME)")
    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.txt"]))
        download_weights(name, folder, [Path()], [TRANSFORMERS, DIFFUSERS])
    except (RepositoryNotFoundError, HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = "no such folder, and no such model on the Hugging Face Hub could be fetched"
        raise ValueError(f"encoder {source}: {reason}") from error
    except ValueError as error:
        raise ValueError(f"encoder {source}: {error}") from error
    return folder


def encoder_repository(source: str) -> str:
    """Return OWNER/NAME for an address on the Hub, any other source as it is; errors name the encoder."""
    try:
        return repository_name(source)
    except ValueError as error:
        raise ValueError(f"encoder {source}: {error}") from error


def read_config(folder: Path, source: str) -> dict[str, Any]:
    """Read config.json in an encoder's folder. Raises ValueError for a missing, damaged or too large file."""
    from audiodiff_core.files.model_files import CONFIG, read_json

    try:
        return read_json(folder, CONFIG)
    except ValueError as error:
        raise ValueError(f"encoder {source}: {error}") from error
