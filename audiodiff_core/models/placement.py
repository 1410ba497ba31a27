"""Copies of networks on a device."""

import copy
from typing import Any

import torch


def placed(network: Any, device: str, dtype: torch.dtype) -> Any:
    """Copy a network to a device, for inference with channels last.

    Args:
        network: A diffusers network. It is not changed.
        device: A torch device.
        dtype: Type of the weights.

    Returns:
        The copy.
    """
    # diffusers' own `to` warns about layers to keep in float32, even if there are no such layers.
    moved = torch.nn.Module.to(copy.deepcopy(network), device, dtype)
    module: Any = torch.nn.Module  # torch's overloads of `to` lack memory_format
    return module.to(moved, memory_format=torch.channels_last).eval()
