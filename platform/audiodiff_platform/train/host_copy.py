"""Copies of a training state in host memory, in buffers that all copies of the state share."""

from collections.abc import Mapping
from typing import Any

import torch


class HostCopy:
    """Host memory for copies of one nested state.

    The first copy allocates the buffers, which takes about as long as the copy itself. Each copy overwrites the
    previous copy. Buffers for the state of a GPU are page-locked, so that the GPU copies at the speed of the bus. Of a
    sharded tensor, the shard of this process is copied.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, ...], torch.Tensor] = {}

    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Copy a state of nested mappings, sequences, tensors and plain values.

        Returns:
            The same structure, with contiguous tensors in host memory that the next call overwrites.
        """
        copy = {str(name): self._copied((str(name),), value) for name, value in state.items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copy

    def _copied(self, path: tuple[str, ...], value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._buffer(path, value).copy_(value.detach(), non_blocking=True)
        if isinstance(value, Mapping):
            return {name: self._copied((*path, str(name)), part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._copied((*path, str(index)), part) for index, part in enumerate(value)]
        return value

    def _buffer(self, path: tuple[str, ...], tensor: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty_like(
                tensor, device="cpu", memory_format=torch.contiguous_format, pin_memory=tensor.is_cuda
            )
            self._buffers[path] = buffer
        return buffer
