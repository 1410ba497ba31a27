"""Wherever a model lies, a local folder with the files that loading reads: a path, any fsspec URI, a Hugging Face id."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from audiodiff_core.checkpoint.layout import (
    AUTOENCODER_KEYS,
    CONFIG,
    LARGEST_JSON,
    MEL_CONFIG,
    MODEL_INDEX,
    PICKLED_WEIGHTS,
    RECORD,
    SCHEDULER_CONFIG,
    WEIGHTS,
    CheckpointError,
)
from audiodiff_core.filesystems import filesystem_of

LARGEST_WEIGHTS = 16 << 30
NETWORK_FOLDERS = ("unet", *AUTOENCODER_KEYS, ".")  # the last: an autoencoder alone
DESCRIPTIONS = [MODEL_INDEX, RECORD, SCHEDULER_CONFIG, MEL_CONFIG, *((Path(folder) / CONFIG).as_posix() for folder in NETWORK_FOLDERS)]


def local_copy(source: str, scratch: Path) -> Path:
    """The folder or file itself, or a copy in `scratch` of what loading reads of it. Raises CheckpointError where there is none."""
    if Path(source).exists():
        return Path(source).resolve()
    if "://" in source:
        return _from_filesystem(source, scratch / "model")
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise CheckpointError("no such folder, and not a Hugging Face id (OWNER/NAME)")
    try:
        return _from_hub(source)
    except (RepositoryNotFoundError, HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError("no such folder, and no such model on the Hugging Face Hub could be fetched") from error


def weights_file(folder: Path) -> Path:
    """The weights in a network's folder: safetensors before a pickle. Raises CheckpointError where there are none."""
    for name in (WEIGHTS, PICKLED_WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"holds neither {folder.name}/{WEIGHTS} nor {PICKLED_WEIGHTS}")


def _from_filesystem(source: str, target: Path) -> Path:
    filesystem, path = filesystem_of(source)
    prefix: str = path.rstrip("/")
    place = target
    if filesystem.isfile(prefix):
        size = filesystem.size(prefix)
        prefix, _, name = prefix.rpartition("/")
        sizes, wanted, place = {name: size}, [name], target / name
    else:
        sizes = {name.removeprefix(prefix + "/"): entry["size"] for name, entry in filesystem.find(prefix, maxdepth=2, detail=True).items()}
        wanted = [name for name in DESCRIPTIONS if name in sizes]
        for folder in (Path(name) for name in NETWORK_FOLDERS):
            wanted += [name for name in ((folder / file).as_posix() for file in (WEIGHTS, PICKLED_WEIGHTS)) if name in sizes][:1]
    if not wanted:
        raise CheckpointError("no such folder" if not sizes else "is not a model folder")
    for name in wanted:
        limit = LARGEST_JSON if name.endswith(".json") else LARGEST_WEIGHTS
        if sizes[name] > limit:
            raise CheckpointError(f"{name} has {sizes[name]:,} bytes, {limit:,} are read")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(f"{prefix}/{name}", str(target / name))
    return place


def _from_hub(name: str) -> Path:
    """A snapshot in the Hub's cache; pickled weights are fetched only for networks that have no others."""
    folders = [Path(folder) for folder in NETWORK_FOLDERS]
    safe = [(folder / WEIGHTS).as_posix() for folder in folders]
    root = Path(snapshot_download(name, allow_patterns=[*DESCRIPTIONS, *safe]))
    pickled = [(folder / PICKLED_WEIGHTS).as_posix() for folder in folders if (root / folder / CONFIG).exists() and not (root / folder / WEIGHTS).exists()]
    if pickled:
        snapshot_download(name, revision=root.name, allow_patterns=pickled)
    return root
