"""Weights in files -> float32 tensors, by name, of exactly the shapes that a network has. Nothing is unpickled as code."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from audiodiff_core.files.model_files import CheckpointError
from audiodiff_core.files.weight_files import LARGEST_WEIGHTS, few

StateDict = dict[str, torch.Tensor]

# diffusers' AttentionBlock until 0.14: its linear layers had other names.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(rf"(.+)\.({'|'.join(OLD_ATTENTION)})\.(weight|bias)")
_FORBIDDEN = re.compile(r"(?:GLOBAL|class|function) `?([\w.]+)")


def read_weights(file: Path, inside: str = "state_dict") -> StateDict:
    """The tensors of a file, whose memory may still be the file's: safetensors, or torch's zip format with tensors alone.

    Where the file is a table with a table `inside`, as a Lightning checkpoint's `state_dict`, that one is given. Raises CheckpointError for anything else.
    """
    size = file.stat().st_size
    if size > LARGEST_WEIGHTS:
        raise CheckpointError(f"{file.name} has {size:,} bytes, {LARGEST_WEIGHTS:,} are read")
    with file.open("rb") as start:
        if start.read(20).startswith(b"version https://git"):
            raise CheckpointError(
                f"{file.name} is a pointer of Git LFS, not the weights: run git lfs pull in the folder"
            )
    content: Any = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    if isinstance(content, Mapping) and isinstance(content.get(inside), Mapping):
        content = content[inside]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{file.name} is not a table of tensors by name")
    if any(
        value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized for value in content.values()
    ):
        raise CheckpointError(f"{file.name} holds tensors that are not plain ones")
    if sum(value.nbytes for value in content.values()) > size:
        raise CheckpointError(f"{file.name} declares more weights than it holds: views of fewer bytes than they show")
    return {name: value.detach() for name, value in content.items()}


def read_weight_files(files: Mapping[Path, set[str] | None]) -> StateDict:
    """Read the tensors of a network's files (`weight_files`). Raises CheckpointError if a shard does not hold what its index states."""
    weights: StateDict = {}
    for file, indexed in files.items():
        tensors = read_weights(file)
        if indexed is not None and tensors.keys() != indexed:
            lacking, others = sorted(indexed - tensors.keys()), sorted(tensors.keys() - indexed)
            raise CheckpointError(f"{file.name} lacks {few(lacking)} of its index and holds unknown {few(others)}")
        weights |= tensors
    return weights


def require_match(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], part: str) -> None:
    """Raise CheckpointError, which names all differences, unless the names and shapes of `weights` are the `expected` ones."""
    reasons = []
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unknown:
        reasons.append(f"the weights of {part} lack {few(missing)} and hold unknown {few(unknown)}")
    others = [name for name in sorted(weights.keys() & expected.keys()) if weights[name].shape != expected[name].shape]
    for name in others[:1]:
        shapes = f"{tuple(weights[name].shape)}, the configuration makes it {tuple(expected[name].shape)}"
        reasons.append(
            f"{part}: weight {name} has the shape {shapes}{f' (of {len(others)} such weights)' if len(others) > 1 else ''}"
        )
    if reasons:
        raise CheckpointError("; ".join(reasons))


def float32_copy(name: str, weight: torch.Tensor, part: str) -> torch.Tensor:
    """Copy a weight to float32 in memory of its own. Raises CheckpointError for a weight that is not finite."""
    own = weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not bool(torch.isfinite(own.sum())) and not bool(torch.isfinite(own).all()):
        raise CheckpointError(f"{part}: weight {name} is not finite (NaN or infinite)")
    return own


def fill(network: Any, weights: StateDict, changes: list[str], part: str) -> None:
    """Give a network on the meta device exactly these weights, as float32; old names of attention layers are translated.

    Raises CheckpointError for weights that are missing, unknown, of another shape or not finite, before memory is allotted.
    """
    expected: dict[str, torch.Tensor] = network.state_dict()
    named: StateDict = {}
    for name, weight in weights.items():
        present = _present_name(name, expected)
        if present in named:
            raise CheckpointError(f"{part}: weight {present} is there twice, by old and new name")
        named[present] = weight
    if renamed := len(named.keys() - weights.keys()):
        changes.append(
            f"{part}: {renamed} weights of attention layers renamed (query, key, value, proj_attn -> to_q, to_k, to_v, to_out.0)"
        )
    require_match(named, expected, part)
    for name, weight in named.items():
        if not weight.is_floating_point():
            raise CheckpointError(f"{part}: weight {name} is {weight.dtype}, not floating point")
    if others := sorted({str(weight.dtype).removeprefix("torch.") for weight in named.values()} - {"float32"}):
        changes.append(f"{part}: {', '.join(others)} -> float32")
    network.load_state_dict({name: float32_copy(name, weight, part) for name, weight in named.items()}, assign=True)


def _read_safetensors(file: Path) -> StateDict:
    try:
        weights: StateDict = safetensors.torch.load_file(file)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{file.name} cannot be read ({error})") from error
    return weights


def _read_pickle(file: Path) -> Any:
    """What torch.save wrote, by torch's own restricted reader; records are stored as they are, so the file bounds the memory."""
    try:
        with zipfile.ZipFile(file) as archive:
            stored = all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"{file.name} is not in torch's zip format, or cut short ({error})") from error
    if not stored:
        raise CheckpointError(f"{file.name} holds compressed records: torch.save writes none")
    try:
        return torch.load(str(file), map_location="cpu", mmap=True, weights_only=True)
    except UnpicklingError as error:
        found = _FORBIDDEN.search(str(error))
        raise CheckpointError(
            f"{file.name} holds {found[1] if found else 'objects'}, more than tensors, and is never run: save it as safetensors"
        ) from error
    except Exception as error:  # a hostile pickle can raise anything within the reader
        raise CheckpointError(f"{file.name} cannot be read ({type(error).__name__}: {error})") from error


def _present_name(name: str, expected: Mapping[str, torch.Tensor]) -> str:
    if name not in expected and (old := _OLD_NAME.fullmatch(name)):
        present = f"{old[1]}.{OLD_ATTENTION[old[2]]}.{old[3]}"
        return present if present in expected else name
    return name
