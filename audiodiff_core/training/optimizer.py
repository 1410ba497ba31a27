"""Optimizers, their steps and moments, and learning rate schedules."""

import math
from importlib import import_module
from typing import Any, Literal

import torch
from torch.distributed.checkpoint import state_dict as distributed
from torch.distributed.tensor import DTensor

RateSchedule = Literal["cosine", "linear", "constant"]
OptimizerName = Literal["adamw", "adamw_8bit"]

FINAL_LEARNING_RATE_FRACTION = 0.05
"""Learning rate at the end of a cosine or linear schedule, as a fraction of the peak learning rate."""


def moments_of(optimizer: torch.optim.Optimizer, network: Any) -> dict[str, Any]:
    """Return the moments of an optimizer by parameter name, unsharded.

    The result is empty before the first optimizer step. Moments of sharded parameters are gathered on the CPU of the
    main process. Other moments share memory with the optimizer.
    """
    if not optimizer.state:
        # torch would initialize the state with a step of learning rate 0, which increments the step count.
        return {}
    sharded = any(isinstance(parameter, DTensor) for parameter in network.parameters())
    return distributed.get_optimizer_state_dict(
        network, optimizer, options=distributed.StateDictOptions(full_state_dict=True, cpu_offload=sharded)
    )


def load_moments(optimizer: torch.optim.Optimizer, network: Any, moments: dict[str, Any]) -> None:
    """Load the result of `moments_of`, or a copy of it, into a new optimizer of `network`."""
    if not moments:
        return
    distributed.set_optimizer_state_dict(
        network, optimizer, moments, options=distributed.StateDictOptions(full_state_dict=True)
    )
    # torch keeps the strides of `moments`. Optimizers read weights and moments in the order of their memory.
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if (
                isinstance(value, torch.Tensor)
                and value.shape == parameter.shape
                and value.stride() != parameter.stride()
            ):
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def stored_moments(optimizer: torch.optim.Optimizer, network: Any) -> dict[str, Any]:
    """Return the moments of an optimizer by parameter name as they are stored, sharded like the parameters.

    A new optimizer gets moments of 0 first. The result shares memory with the optimizer.
    """
    return distributed.get_optimizer_state_dict(network, optimizer)


def load_stored_moments(optimizer: torch.optim.Optimizer, network: Any, moments: dict[str, Any]) -> None:
    """Load moments in the form of `stored_moments`, with the same sharding."""
    distributed.set_optimizer_state_dict(network, optimizer, moments)


def make_optimizer(name: OptimizerName, network: Any, learning_rate: float, device: str) -> torch.optim.Optimizer:
    """Create an optimizer for the parameters of a network.

    Args:
        name: `adamw` is AdamW in one fused kernel. `adamw_8bit` stores the moments in 8 bits, 2 bytes for each
            parameter instead of 8 (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022). It needs a
            CUDA GPU and the package bitsandbytes.
        network: The network to train.
        learning_rate: The initial learning rate.
        device: Device type, for example "cuda".

    Raises:
        ValueError: If `adamw_8bit` is not available.
    """
    if name == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=learning_rate, fused=True)
    if device != "cuda":
        raise ValueError(f"optimizer {name} needs a CUDA GPU, but the device is {device}: use adamw")
    try:
        adamw_8bit = import_module("bitsandbytes.optim").AdamW8bit
    except ImportError as error:
        raise ValueError(f"optimizer {name} needs the package bitsandbytes: install it, or use adamw") from error
    optimizer: torch.optim.Optimizer = adamw_8bit(network.parameters(), lr=learning_rate)
    return optimizer


def update_weights(optimizer: Any, rate: float, finite: torch.Tensor) -> None:
    """Take an optimizer step unless the gradient is not finite, and discard the gradient.

    A skipped step does not change the weights, the moments and the step counts of the optimizer. A gradient scaler
    (fp16) skips steps itself, and lowers its scale. Without a scaler, the fused kernel of `adamw` reads `finite` on the
    device. `adamw_8bit` cannot, so the host reads it, and waits for the device.

    Args:
        optimizer: The optimizer as prepared by accelerate.
        rate: The learning rate.
        finite: Whether the norm of the gradient is finite, a bool of shape () on the device of the weights.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    inner = optimizer.optimizer
    fused = isinstance(inner, torch.optim.AdamW)
    if optimizer.scaler is not None:
        optimizer.step()
    elif fused:
        inner.found_inf = (~finite).float()  # GradScaler passes its flag in the same way
        optimizer.step()
        del inner.found_inf
    elif finite:
        optimizer.step()
    optimizer.zero_grad()


def learning_rate(
    peak: float, step: int, warmup_steps: int, progress: float, schedule: RateSchedule = "cosine"
) -> float:
    """Compute the learning rate of an optimizer step: linear warmup, then decay to 5 % of the peak.

    Args:
        peak: Learning rate after the warmup.
        step: Number of the optimizer step, from 0.
        warmup_steps: Optimizer steps of the warmup.
        progress: Completed fraction of the training. Values above 1 count as 1.
        schedule: Shape of the decay; `constant` does not decay.
    """
    progress = min(progress, 1)
    decay = {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress, "constant": 1.0}[schedule]
    fraction = FINAL_LEARNING_RATE_FRACTION + (1 - FINAL_LEARNING_RATE_FRACTION) * decay
    return peak * min(1.0, (step + 1) / max(1, warmup_steps)) * fraction
