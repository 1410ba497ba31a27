"""Folders of encoders: local, or downloaded from the Hugging Face Hub."""

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
    """Return the local folder of an encoder.

    Hub repositories are downloaded, with only the preferred weights.

    Raises:
        ValueError: If the encoder does not exist or cannot be downloaded.
    """
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
        reason = "no such folder, and no model could be downloaded from the Hugging Face Hub"
        raise ValueError(f"encoder {source}: {reason}") from error
    except ValueError as error:
        raise ValueError(f"encoder {source}: {error}") from error
    return folder


def encoder_repository(source: str) -> str:
    """Convert the address of a Hub repository to OWNER/NAME, and return any other source unchanged.

    Raises:
        ValueError: If `source` is any other address on the Hub. The message names the encoder.
    """
    try:
        return repository_name(source)
    except ValueError as error:
        raise ValueError(f"encoder {source}: {error}") from error


def read_config(folder: Path, source: str) -> dict[str, Any]:
    """Read the config.json in an encoder's folder.

    Raises:
        ValueError: If the file is missing, damaged or too large. The message names `source`.
    """
    from audiodiff_core.files.model_files import CONFIG, read_json

    try:
        return read_json(folder, CONFIG)
    except ValueError as error:
        raise ValueError(f"encoder {source}: {error}") from error
