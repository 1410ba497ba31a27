"""Files of a network's weights: whole or in shards, in full or half precision, as safetensors or a pickle of tensors.

    BASE.safetensors        BASE.safetensors.index.json        shards such as BASE-00001-of-00002.safetensors
    BASE.fp16.safetensors   BASE.safetensors.index.fp16.json   shards such as BASE.fp16-00001-of-00002.safetensors

Full precision comes first, then safetensors, then whole files. An index is untrusted: its shards lie beside it.
"""

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from audiodiff_core.files.model_files import CheckpointError, read_json

LARGEST_WEIGHTS = 16 << 30
"""Bytes of one network's weights."""

MOST_SHARDS = 256
VARIANTS = ("fp32", "fp16", "bf16")
INDEX_END = ".json"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class WeightNames:
    """The names that a library gives to weight files, without their endings."""

    safetensors: str
    pickled: str

    def stages(self) -> Iterator[tuple[str, str]]:
        """Yield the names of a whole file and of an index of shards, in the order of preference."""
        for variant in ("", *VARIANTS):
            part = f".{variant}" if variant else ""
            for base, suffix in ((self.safetensors, "safetensors"), (self.pickled, "bin")):
                yield f"{base}{part}.{suffix}", f"{base}.{suffix}.index{part}{INDEX_END}"

    def preferred(self, present: Container[str]) -> str | None:
        """Return the file or index that is read if a folder holds the names `present`, None without weights."""
        return next((name for stage in self.stages() for name in stage if name in present), None)


DIFFUSERS = WeightNames("diffusion_pytorch_model", "diffusion_pytorch_model")
TRANSFORMERS = WeightNames("model", "pytorch_model")


def shards(folder: Path, index: str) -> dict[str, set[str]]:
    """Return the sorted names of an index's shards, and the tensors in each.

    Raises CheckpointError for an index that is damaged, names files outside its folder, or too many.
    """
    weight_map = read_json(folder, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map of tensors to files")
    suffix = ".safetensors" if ".safetensors." in index else ".bin"
    tensors: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name) or not name.endswith(suffix):
            raise CheckpointError(
                f"{index} names the file {str(name)[:100]!r}: a {suffix} file beside the index is expected"
            )
        tensors.setdefault(name, set()).add(tensor)
    if len(tensors) > MOST_SHARDS:
        raise CheckpointError(f"{index} names {len(tensors)} files, {MOST_SHARDS} are read")
    return dict(sorted(tensors.items()))


def require_shards(index: str, wanted: Iterable[str], present: Container[str]) -> None:
    """Raise CheckpointError for shards of an index that are not `present`."""
    if missing := [name for name in wanted if name not in present]:
        raise CheckpointError(f"{index} names files that are missing: {few(missing)}")


def few(names: list[str]) -> str:
    """List the first names for a message."""
    return "none" if not names else ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def weight_files(
    folder: Path, names: WeightNames = DIFFUSERS, largest: int = LARGEST_WEIGHTS
) -> dict[Path, set[str] | None]:
    """Return the files of a network's weights and the tensors that an index places in each, None without an index.

    Raises CheckpointError if there are none, a shard is missing, or they have more than `largest` bytes.
    """
    held = {file.name for file in folder.iterdir() if file.is_file()} if folder.is_dir() else set()
    name = names.preferred(held)
    if name is None:
        others = sorted(name for name in held if ".safetensors" in name or ".bin" in name)
        known = f"{names.safetensors}.safetensors or {names.pickled}.bin, whole, in shards or as {', '.join(VARIANTS)}"
        raise CheckpointError(f"{folder.name} holds no {known}: its weights are {few(others)}")
    tensors: dict[Path, set[str] | None] = {folder / name: None}
    if name.endswith(INDEX_END):
        indexed = shards(folder, name)
        require_shards(f"{folder.name}/{name}", indexed, held)
        tensors = {folder / shard: inside for shard, inside in indexed.items()}
    if (size := sum(file.stat().st_size for file in tensors)) > largest:
        raise CheckpointError(f"{name} has {size:,} bytes, {largest:,} are read")
    return tensors
