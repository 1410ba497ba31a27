"""Optimizers, their state, and learning rate schedules."""

import math
from importlib import import_module
from typing import Any, Literal

import torch
from torch.distributed.checkpoint import state_dict as distributed

RateSchedule = Literal["cosine", "linear", "constant"]
OptimizerName = Literal["adamw", "adamw_8bit"]

FINAL_LEARNING_RATE_FRACTION = 0.05


def moments_of(optimizer: torch.optim.Optimizer, network: Any) -> dict[str, Any]:
    """An optimizer's moments by parameter name, whole and on the CPU: none before its first step.

    (Asked then, torch would make some by a step of no length, which the optimizer would go on counting.)
    """
    if not optimizer.state:
        return {}
    return distributed.get_optimizer_state_dict(
        network, optimizer, options=distributed.StateDictOptions(full_state_dict=True, cpu_offload=True)
    )


def load_moments(optimizer: torch.optim.Optimizer, network: Any, moments: dict[str, Any]) -> None:
    """Gives a new optimizer what `moments_of` gave."""
    if moments:
        distributed.set_optimizer_state_dict(
            network, optimizer, moments, options=distributed.StateDictOptions(full_state_dict=True)
        )


def make_optimizer(name: OptimizerName, network: Any, learning_rate: float, device: str) -> torch.optim.Optimizer:
    """AdamW in one fused kernel, or with moments of 8 bits (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022; 2 bytes
    for each parameter instead of 8). Raises ValueError where the device or the installation has no such optimizer.
    """
    if name == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=learning_rate, fused=True)
    if device != "cuda":
        raise ValueError(f"optimizer {name} needs a CUDA GPU, and this is {device}: use adamw")
    try:
        eight_bit = import_module("bitsandbytes.optim").AdamW8bit
    except ImportError as error:
        raise ValueError(f"optimizer {name} needs the package bitsandbytes: install it, or use adamw") from error
    moments_of_8_bits: torch.optim.Optimizer = eight_bit(network.parameters(), lr=learning_rate)
    return moments_of_8_bits


def learning_rate(
    peak: float, step: int, warmup_steps: int, progress: float, schedule: RateSchedule = "cosine"
) -> float:
    """Linear warm-up over `warmup_steps`, then down to a twentieth of `peak` as `progress` goes from 0 to 1: half a cosine or a line; or constant."""
    done = min(progress, 1)
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[schedule]
    fraction = FINAL_LEARNING_RATE_FRACTION + (1 - FINAL_LEARNING_RATE_FRACTION) * left
    return peak * min(1.0, (step + 1) / max(1, warmup_steps)) * fraction
