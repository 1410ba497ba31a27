"""Reading of weights without running pickled code, and loading into networks as float32."""

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from audiodiff_core.files.model_files import CheckpointError
from audiodiff_core.files.weight_files import MAX_WEIGHTS_BYTES, summarize_names

StateDict = dict[str, torch.Tensor]

# Linear layers of diffusers' AttentionBlock, which had other names until diffusers 0.14.
OLD_ATTENTION_LAYERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(rf"(.+)\.({'|'.join(OLD_ATTENTION_LAYERS)})\.(weight|bias)")
_FORBIDDEN = re.compile(r"(?:GLOBAL|class|function) `?([\w.]+)")


def read_weights(file: Path, nested_key: str = "state_dict") -> StateDict:
    """Read the tensors of a safetensors file or of a file that `torch.save` wrote.

    The returned tensors may be memory-mapped from the file.

    Args:
        file: The weight file. The suffix `.safetensors` selects the format.
        nested_key: Key of a nested mapping, such as the `state_dict` of a Lightning checkpoint. If the file has this
            key, only the nested mapping is returned.

    Raises:
        CheckpointError: If the file is damaged or too large, or contains anything other than dense CPU tensors.
    """
    size = file.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise CheckpointError(f"{file.name} has {size:,} bytes: must be at most {MAX_WEIGHTS_BYTES:,}")
    with file.open("rb") as start:
        if start.read(20).startswith(b"version https://git"):
            raise CheckpointError(f"{file.name} is a Git LFS pointer, not the weights: run git lfs pull in the folder")
    content: Any = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    if isinstance(content, Mapping) and isinstance(content.get(nested_key), Mapping):
        content = content[nested_key]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{file.name} is not a mapping of names to tensors")
    if any(
        value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized for value in content.values()
    ):
        raise CheckpointError(f"{file.name} contains sparse, quantized or meta tensors: must be dense CPU tensors")
    # A tensor can be an expanded view of a small storage. Its copy would take unbounded memory.
    if (tensor_bytes := sum(value.nbytes for value in content.values())) > size:
        raise CheckpointError(f"{file.name} declares {tensor_bytes:,} bytes of weights, more than its {size:,} bytes")
    return {name: value.detach() for name, value in content.items()}


def read_weight_files(files: Mapping[Path, set[str] | None]) -> StateDict:
    """Read the tensors of all files of a network.

    Args:
        files: Names of the tensors in each file, as `weight_files` returns them.

    Raises:
        CheckpointError: If a file cannot be read, or its tensors differ from those in the index.
    """
    weights: StateDict = {}
    for file, expected in files.items():
        tensors = read_weights(file)
        if expected is not None and tensors.keys() != expected:
            differences = _name_differences(tensors.keys(), expected)
            raise CheckpointError(f"{file.name} does not match its index: {differences}")
        weights |= tensors
    return weights


def require_match(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], part: str) -> None:
    """Raise CheckpointError if weights do not match a network in their names or shapes.

    Args:
        weights: The weights to check.
        expected: The network's state dict.
        part: Name of the network in the error message, which lists all differences.
    """
    reasons = []
    if weights.keys() != expected.keys():
        reasons.append(f"{part}: {_name_differences(weights.keys(), expected.keys())}")
    others = [name for name in sorted(weights.keys() & expected.keys()) if weights[name].shape != expected[name].shape]
    for name in others[:1]:
        shapes = f"{tuple(weights[name].shape)}, the configuration requires {tuple(expected[name].shape)}"
        count = f" (1 of {len(others)} weights with a wrong shape)" if len(others) > 1 else ""
        reasons.append(f"{part}: weight {name} has shape {shapes}{count}")
    if reasons:
        raise CheckpointError("; ".join(reasons))


def float32_copy(name: str, weight: torch.Tensor, part: str) -> torch.Tensor:
    """Return a contiguous float32 copy of a weight. The copy shares no memory with the file.

    Args:
        name: Name of the weight in the error message.
        weight: The weight, of any shape and floating-point type.
        part: Name of the network in the error message.

    Raises:
        CheckpointError: If the weight contains NaN or infinite values.
    """
    copy = weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    # The sum is a fast check that needs no memory, but the sum of finite values can overflow.
    if not bool(torch.isfinite(copy.sum())) and not bool(torch.isfinite(copy).all()):
        raise CheckpointError(f"{part}: weight {name} contains NaN or infinite values")
    return copy


def load_weights(network: Any, weights: StateDict, changes: list[str], part: str) -> None:
    """Load weights into a network on the meta device, as float32 on the CPU.

    Weights with the old names of attention layers are renamed. All names, shapes and types are checked before memory
    is allocated.

    Args:
        network: A network on the meta device, changed in place.
        weights: Weights for all parameters and buffers of the network.
        changes: List to which a line is appended for every renaming and conversion.
        part: Name of the network in messages.

    Raises:
        CheckpointError: If weights are missing, unexpected, of the wrong shape, not floating point, or not finite.
    """
    expected: dict[str, torch.Tensor] = network.state_dict()
    renamed: StateDict = {}
    for name, weight in weights.items():
        current_name = _current_name(name, expected)
        if current_name in renamed:
            raise CheckpointError(f"{part}: weight {current_name} is stored twice, under its old and its current name")
        renamed[current_name] = weight
    if count := len(renamed.keys() - weights.keys()):
        changes.append(
            f"{part}: renamed {count} weights of attention layers "
            f"({', '.join(OLD_ATTENTION_LAYERS)} to {', '.join(OLD_ATTENTION_LAYERS.values())})"
        )
    require_match(renamed, expected, part)
    for name, weight in renamed.items():
        if not weight.is_floating_point():
            raise CheckpointError(f"{part}: weight {name} is {weight.dtype}: must be floating point")
    if dtypes := sorted({str(weight.dtype).removeprefix("torch.") for weight in renamed.values()} - {"float32"}):
        changes.append(f"{part}: converted {', '.join(dtypes)} to float32")
    network.load_state_dict({name: float32_copy(name, weight, part) for name, weight in renamed.items()}, assign=True)


def _name_differences(names: Iterable[str], expected: Iterable[str]) -> str:
    missing, unexpected = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
    return f"missing weights: {summarize_names(missing)}; unexpected weights: {summarize_names(unexpected)}"


def _read_safetensors(file: Path) -> StateDict:
    try:
        weights: StateDict = safetensors.torch.load_file(file)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{file.name} cannot be read ({error})") from error
    return weights


def _read_pickle(file: Path) -> Any:
    """Load a file of `torch.save` with torch's restricted unpickler.

    The file must be uncompressed, so that its size limits the memory for reading.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            uncompressed = all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"{file.name} is truncated or not in torch's zip format ({error})") from error
    if not uncompressed:
        raise CheckpointError(f"{file.name} contains compressed records: must be uncompressed, as torch.save writes it")
    try:
        return torch.load(str(file), map_location="cpu", mmap=True, weights_only=True)
    except UnpicklingError as error:
        forbidden = _FORBIDDEN.search(str(error))
        raise CheckpointError(
            f"{file.name} contains {forbidden[1] if forbidden else 'objects'}, which is not a tensor and is never run: "
            "save the weights as safetensors"
        ) from error
    except Exception as error:  # a malicious pickle can make the unpickler raise anything
        raise CheckpointError(f"{file.name} cannot be read ({type(error).__name__}: {error})") from error


def _current_name(name: str, expected: Mapping[str, torch.Tensor]) -> str:
    if name not in expected and (old := _OLD_NAME.fullmatch(name)):
        current_name = f"{old[1]}.{OLD_ATTENTION_LAYERS[old[2]]}.{old[3]}"
        return current_name if current_name in expected else name
    return name
