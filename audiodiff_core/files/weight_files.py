"""Names of weight files, and the choice between several files of one network.

Weights are a single file, or shards that an index lists. They have full or half precision, and are stored as
safetensors or as a pickle of tensors (`.bin`):

    BASE.safetensors        BASE.safetensors.index.json        shards such as BASE-00001-of-00002.safetensors
    BASE.fp16.safetensors   BASE.safetensors.index.fp16.json   shards such as BASE.fp16-00001-of-00002.safetensors

Full precision is preferred to half, then safetensors to pickles, then single files to shards. An index is untrusted:
its shards must be in its own folder.
"""

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from audiodiff_core.files.model_files import CheckpointError, read_json

MAX_WEIGHTS_BYTES = 16 << 30
"""Maximum size of one network's weights, in bytes."""

MAX_SHARDS = 256
VARIANTS = ("fp32", "fp16", "bf16")
INDEX_SUFFIX = ".json"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class WeightNames:
    """Base names of a library's weight files, without suffixes."""

    safetensors: str
    pickled: str

    def candidates(self) -> Iterator[tuple[str, str]]:
        """Yield pairs of file names, a single file and an index of shards, in order of preference."""
        for variant in ("", *VARIANTS):
            part = f".{variant}" if variant else ""
            for base, suffix in ((self.safetensors, "safetensors"), (self.pickled, "bin")):
                yield f"{base}{part}.{suffix}", f"{base}.{suffix}.index{part}{INDEX_SUFFIX}"

    def preferred(self, present: Container[str]) -> str | None:
        """Return the preferred weight file or index among the file names `present`, or None without weights."""
        return next((name for pair in self.candidates() for name in pair if name in present), None)


DIFFUSERS = WeightNames("diffusion_pytorch_model", "diffusion_pytorch_model")
TRANSFORMERS = WeightNames("model", "pytorch_model")


def read_shard_index(folder: Path, index: str) -> dict[str, set[str]]:
    """Read the index file `index` in `folder`.

    Returns:
        The names of the tensors in each shard, by the file name of the shard. File names are sorted.

    Raises:
        CheckpointError: If the index is damaged, names a file outside `folder`, or names more than MAX_SHARDS files.
    """
    weight_map = read_json(folder, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map of tensors to files")
    suffix = ".safetensors" if ".safetensors." in index else ".bin"
    tensors: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name) or not name.endswith(suffix):
            raise CheckpointError(
                f"{index} names the file {str(name)[:100]!r}: must be a {suffix} file in the index's folder"
            )
        tensors.setdefault(name, set()).add(tensor)
    if len(tensors) > MAX_SHARDS:
        raise CheckpointError(f"{index} names {len(tensors)} files: must be at most {MAX_SHARDS}")
    return dict(sorted(tensors.items()))


def require_shards(index: str, shards: Iterable[str], present: Container[str]) -> None:
    """Raise CheckpointError if any of an index's `shards` is not among the files `present`."""
    if missing := [name for name in shards if name not in present]:
        raise CheckpointError(f"{index} names missing files: {summarize_names(missing)}")


def summarize_names(names: list[str]) -> str:
    """Join the first three names for an error message, and append the number of further names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "none"


def weight_files(
    folder: Path, names: WeightNames = DIFFUSERS, max_bytes: int = MAX_WEIGHTS_BYTES
) -> dict[Path, set[str] | None]:
    """Return the preferred weight files of the network in `folder`.

    Args:
        folder: A network's folder.
        names: Names that the network's library uses.
        max_bytes: Maximum total size of the files, in bytes.

    Returns:
        The names of the tensors in each file, by path. The names are None for a file without an index.

    Raises:
        CheckpointError: If no weights exist, a shard is missing, or the files have more than `max_bytes` bytes.
    """
    present = {file.name for file in folder.iterdir() if file.is_file()} if folder.is_dir() else set()
    name = names.preferred(present)
    if name is None:
        others = sorted(name for name in present if ".safetensors" in name or ".bin" in name)
        accepted = f"{names.safetensors}.safetensors or {names.pickled}.bin"
        raise CheckpointError(
            f"{folder.name} contains no {accepted} (as a single file, as shards, or as variant {', '.join(VARIANTS)}); "
            f"weight files present: {summarize_names(others)}"
        )
    tensors: dict[Path, set[str] | None] = {folder / name: None}
    if name.endswith(INDEX_SUFFIX):
        index = read_shard_index(folder, name)
        require_shards(f"{folder.name}/{name}", index, present)
        tensors = {folder / shard: tensor_names for shard, tensor_names in index.items()}
    if (size := sum(file.stat().st_size for file in tensors)) > max_bytes:
        raise CheckpointError(f"the weights of {folder.name} have {size:,} bytes: must be at most {max_bytes:,}")
    return tensors
