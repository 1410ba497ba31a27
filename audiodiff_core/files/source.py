"""Local copies of model files from a path, any fsspec URI or the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from audiodiff_core.files.builtin import builtin_folder, is_builtin
from audiodiff_core.files.filesystems import filesystem_of
from audiodiff_core.files.hub_names import repository_name
from audiodiff_core.files.model_files import (
    AUTOENCODER_KEYS,
    CONFIG,
    MAX_JSON_BYTES,
    MEL_CONFIG,
    MODEL_INDEX,
    RECORD,
    SCHEDULER_CONFIG,
    CheckpointError,
)
from audiodiff_core.files.weight_files import (
    DIFFUSERS,
    INDEX_SUFFIX,
    MAX_WEIGHTS_BYTES,
    WeightNames,
    read_shard_index,
    require_shards,
)

NETWORK_FOLDERS = ("unet", *AUTOENCODER_KEYS, ".")
"""Folders that may contain a network. "." applies to an autoencoder without a model."""

DESCRIPTIONS = [
    MODEL_INDEX,
    RECORD,
    SCHEDULER_CONFIG,
    MEL_CONFIG,
    *((Path(folder) / CONFIG).as_posix() for folder in NETWORK_FOLDERS),
]
"""All files of a model that are not weights."""


def local_copy(source: str, scratch: Path, *, weights: bool = True) -> Path:
    """Return a local path with the model files of `source`.

    A local `source` is returned as an absolute path. The files of a URI that are required for loading are copied to
    `scratch`. The files of a Hub repository are downloaded to the Hub's cache.

    Args:
        source: A local file or folder, an fsspec URI, a Hugging Face id or address, or `builtin:NAME`.
        scratch: A folder for the copies of a URI.
        weights: Whether to copy or download weights.

    Raises:
        CheckpointError: If `source` does not exist, is not a model, or cannot be downloaded.
    """
    if is_builtin(source):
        return builtin_folder(source)
    if Path(source).exists():
        return Path(source).resolve()
    source = repository_name(source)
    if "://" in source:
        return _from_filesystem(source, scratch / "model", weights)
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise CheckpointError("no such folder, and not a Hugging Face id (OWNER/NAME)")
    try:
        return _from_hub(source, weights)
    except (RepositoryNotFoundError, HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError("no such folder, and no model could be downloaded from the Hugging Face Hub") from error


def _from_filesystem(source: str, target: Path, with_weights: bool) -> Path:
    filesystem, path = filesystem_of(source)
    prefix: str = path.rstrip("/")
    local_path = target
    if filesystem.isfile(prefix):
        size = filesystem.size(prefix)
        prefix, _, name = prefix.rpartition("/")
        sizes, names, local_path = {name: size}, [name], target / name
    else:
        sizes = {
            name.removeprefix(prefix + "/"): entry["size"]
            for name, entry in filesystem.find(prefix, maxdepth=2, detail=True).items()
        }
        names = [name for name in DESCRIPTIONS if name in sizes]
        for folder in NETWORK_FOLDERS if with_weights else ():
            folder_files = {Path(name).name for name in sizes if Path(name).parent == Path(folder)}
            if preferred := DIFFUSERS.preferred(folder_files):
                names.append((Path(folder) / preferred).as_posix())
    if not names:
        raise CheckpointError("not a model folder" if sizes else "no such folder")
    for name in names:  # the list grows: an index appends its shards
        limit = MAX_JSON_BYTES if name.endswith(".json") else MAX_WEIGHTS_BYTES
        if sizes[name] > limit:
            raise CheckpointError(f"{name} has {sizes[name]:,} bytes: must be at most {limit:,}")
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(f"{prefix}/{name}", str(target / name))
        if name not in DESCRIPTIONS and name.endswith(INDEX_SUFFIX):
            parent = Path(name).parent
            shards = [(parent / shard).as_posix() for shard in read_shard_index(target / parent, Path(name).name)]
            require_shards(name, shards, sizes)
            if (size := sum(sizes[shard] for shard in shards)) > MAX_WEIGHTS_BYTES:
                raise CheckpointError(
                    f"the shards of {name} have {size:,} bytes: must be at most {MAX_WEIGHTS_BYTES:,}"
                )
            names += shards
    return local_path


def _from_hub(name: str, with_weights: bool) -> Path:
    """Download a repository's descriptions and preferred weights to the Hub's cache."""
    if not with_weights:
        return Path(snapshot_download(name, allow_patterns=DESCRIPTIONS))
    folders = [Path(folder) for folder in NETWORK_FOLDERS]
    weights, index = next(DIFFUSERS.candidates())
    root = Path(
        snapshot_download(
            name,
            allow_patterns=[
                *DESCRIPTIONS,
                *((folder / file).as_posix() for folder in folders for file in (weights, index)),
            ],
        )
    )
    download_weights(name, root, [folder for folder in folders if (root / folder / CONFIG).exists()], [DIFFUSERS])
    return root


def download_weights(name: str, root: Path, folders: Sequence[Path], libraries: Sequence[WeightNames]) -> None:
    """Download the preferred weights of each network to a snapshot of its repository.

    Weights that the snapshot already contains are not downloaded again. Networks without weights in the repository are
    skipped.

    Args:
        name: Repository, as OWNER/NAME.
        root: Snapshot folder of the repository in the Hub's cache.
        folders: Folders of the networks, relative to `root`.
        libraries: Libraries whose file names are accepted.
    """
    for candidates in zip(*(library.candidates() for library in libraries), strict=True):
        incomplete = [
            folder for folder in folders if not any(_preferred(root / folder, library) for library in libraries)
        ]
        missing = [
            (folder / file).as_posix()
            for folder in incomplete
            for names in candidates
            for file in names
            if not (root / folder / file).exists()
        ]
        if missing:
            snapshot_download(name, revision=root.name, allow_patterns=missing)
    for folder in folders:
        for library in libraries:
            if (index := _preferred(root / folder, library)) and index.endswith(INDEX_SUFFIX):
                shards = [
                    (folder / shard).as_posix()
                    for shard in read_shard_index(root / folder, index)
                    if not (root / folder / shard).exists()
                ]
                if shards:
                    snapshot_download(name, revision=root.name, allow_patterns=shards)


def _preferred(folder: Path, library: WeightNames) -> str | None:
    return library.preferred({file.name for file in folder.iterdir()}) if folder.is_dir() else None
