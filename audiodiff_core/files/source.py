"""Wherever a model lies, a local folder with the files that loading reads: a path, any fsspec URI, a Hugging Face id."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from audiodiff_core.files.filesystems import filesystem_of
from audiodiff_core.files.hub_names import repository_name
from audiodiff_core.files.model_files import (
    AUTOENCODER_KEYS,
    CONFIG,
    LARGEST_JSON,
    MEL_CONFIG,
    MODEL_INDEX,
    RECORD,
    SCHEDULER_CONFIG,
    CheckpointError,
)
from audiodiff_core.files.weight_files import DIFFUSERS, INDEX_END, LARGEST_WEIGHTS, WeightNames, require_shards, shards

NETWORK_FOLDERS = ("unet", *AUTOENCODER_KEYS, ".")  # the last: an autoencoder alone
DESCRIPTIONS = [
    MODEL_INDEX,
    RECORD,
    SCHEDULER_CONFIG,
    MEL_CONFIG,
    *((Path(folder) / CONFIG).as_posix() for folder in NETWORK_FOLDERS),
]


def local_copy(source: str, scratch: Path) -> Path:
    """The folder or file itself, or a copy in `scratch` of what loading reads of it. Raises CheckpointError where there is none."""
    if Path(source).exists():
        return Path(source).resolve()
    source = repository_name(source)
    if "://" in source:
        return _from_filesystem(source, scratch / "model")
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise CheckpointError("no such folder, and not a Hugging Face id (OWNER/NAME)")
    try:
        return _from_hub(source)
    except (RepositoryNotFoundError, HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError("no such folder, and no such model on the Hugging Face Hub could be fetched") from error


def _from_filesystem(source: str, target: Path) -> Path:
    filesystem, path = filesystem_of(source)
    prefix: str = path.rstrip("/")
    place = target
    if filesystem.isfile(prefix):
        size = filesystem.size(prefix)
        prefix, _, name = prefix.rpartition("/")
        sizes, wanted, place = {name: size}, [name], target / name
    else:
        sizes = {
            name.removeprefix(prefix + "/"): entry["size"]
            for name, entry in filesystem.find(prefix, maxdepth=2, detail=True).items()
        }
        wanted = [name for name in DESCRIPTIONS if name in sizes]
        for folder in NETWORK_FOLDERS:
            inside = {Path(name).name for name in sizes if Path(name).parent == Path(folder)}
            if preferred := DIFFUSERS.preferred(inside):
                wanted.append((Path(folder) / preferred).as_posix())
    if not wanted:
        raise CheckpointError("no such folder" if not sizes else "is not a model folder")
    for name in wanted:  # an index adds its shards to the end
        limit = LARGEST_JSON if name.endswith(".json") else LARGEST_WEIGHTS
        if sizes[name] > limit:
            raise CheckpointError(f"{name} has {sizes[name]:,} bytes, {limit:,} are read")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(f"{prefix}/{name}", str(target / name))
        if name not in DESCRIPTIONS and name.endswith(INDEX_END):
            parent = Path(name).parent
            parts = [(parent / shard).as_posix() for shard in shards(target / parent, Path(name).name)]
            require_shards(name, parts, sizes)
            if (size := sum(sizes[part] for part in parts)) > LARGEST_WEIGHTS:
                raise CheckpointError(f"{name} is of {size:,} bytes, {LARGEST_WEIGHTS:,} are read")
            wanted += parts
    return place


def _from_hub(name: str) -> Path:
    """Download a snapshot to the Hub's cache, with the weights that loading prefers for each network."""
    folders = [Path(folder) for folder in NETWORK_FOLDERS]
    whole, index = next(DIFFUSERS.stages())
    root = Path(
        snapshot_download(
            name,
            allow_patterns=[
                *DESCRIPTIONS,
                *((folder / file).as_posix() for folder in folders for file in (whole, index)),
            ],
        )
    )
    download_weights(name, root, [folder for folder in folders if (root / folder / CONFIG).exists()], [DIFFUSERS])
    return root


def download_weights(name: str, root: Path, folders: Sequence[Path], libraries: Sequence[WeightNames]) -> None:
    """Add to the snapshot `root` of a repository the preferred weights, named as by any of `libraries`, of each network's folder."""
    for stage in zip(*(library.stages() for library in libraries), strict=True):
        lacking = [folder for folder in folders if not any(_preferred(root / folder, library) for library in libraries)]
        missing = [
            (folder / file).as_posix()
            for folder in lacking
            for names in stage
            for file in names
            if not (root / folder / file).exists()
        ]
        if missing:
            snapshot_download(name, revision=root.name, allow_patterns=missing)
    for folder in folders:
        for library in libraries:
            if (index := _preferred(root / folder, library)) and index.endswith(INDEX_END):
                parts = [
                    (folder / shard).as_posix()
                    for shard in shards(root / folder, index)
                    if not (root / folder / shard).exists()
                ]
                if parts:
                    snapshot_download(name, revision=root.name, allow_patterns=parts)


def _preferred(folder: Path, library: WeightNames) -> str | None:
    return library.preferred({file.name for file in folder.iterdir()}) if folder.is_dir() else None
