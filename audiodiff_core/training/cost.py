"""Cost of training: FLOPs and memory before training, utilization of the device afterwards.

FLOPs are counted by torch's flop counter in a forward pass on the meta device, without computation. A multiplication
and an addition count as two FLOPs.

The memory of weights, average, optimizer and gradients is exact. The memory of activations is the peak of all other
tensors in a forward and a backward pass on the meta device. It does not include the overhead of the allocator and the
workspaces of kernels. A frozen autoencoder adds its weights. It encodes a few images at a time, before the network
allocates its activations.
"""

import json
import re
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from audiodiff_core.models import configured, fold_of, image_sides, parameter_count
from audiodiff_core.training.optimizer import OptimizerName

# Tensor-core peaks in FLOP/s for dense matrices (without sparsity) from NVIDIA's data sheets. The keys are the words of
# the CUDA device name that identify the model.
BF16_PEAKS = {
    "GB200": 2_500e12,
    "B200": 2_250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H100 SXM5": 989e12,
    "H100 PCIE": 756e12,
    "H100 NVL": 835e12,
    "H800": 989e12,
    "H800 PCIE": 756e12,
    "H20": 148e12,
    "A100": 312e12,
    "A100 SXM": 312e12,
    "A100 SXM4": 312e12,
    "A100 PCIE": 312e12,
    "A800": 312e12,
    "A800 SXM4": 312e12,
    "A800 PCIE": 312e12,
    "A30": 165e12,
    "A40": 150e12,
    "A10": 125e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 6000 ADA GENERATION": 364e12,
    "RTX A6000": 155e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
FP16_PEAKS = BF16_PEAKS | {
    "V100 SXM2": 125e12,
    "V100 SXM3": 125e12,
    "V100 PCIE": 112e12,
    "V100S PCIE": 130e12,
    "T4": 65e12,
}
"""The same peaks in fp16, and the peaks of GPUs without bf16."""

# Words of a CUDA device name that do not affect the peak. Boards of 64 GB are custom models with other peaks.
_IRRELEVANT_WORD = re.compile(r"NVIDIA|TESLA|GEFORCE|(?!64)\d+GB?|HBM3E?")

OPTIMIZER_BYTES: dict[OptimizerName, int] = {"adamw": 8, "adamw_8bit": 2}
"""Bytes of the moments of one parameter."""
FLOAT_BYTES = 4
AUTOCAST_BYTES = 2
"""Bytes of the copy that autocast keeps of one parameter."""
AUTOCAST_ACTIVATIONS = 0.9
"""Memory of activations under autocast, relative to float32.

Autocast runs convolutions and matrix products in 16 bits, and keeps inputs and results of norms in float32. With these
rules, the peak of the presets is 0.86 to 0.90 of that in float32 (counted on the meta device).
"""
BACKWARD_FLOPS = 2
"""FLOPs of a backward pass, relative to a forward pass: 1 for the gradients of weights, 1 for those of inputs."""


@dataclass(frozen=True)
class TrainingCost:
    """Cost of training on one worker under DDP.

    Args:
        parameters: Number of parameters.
        flops_per_sample: FLOPs of the forward and backward pass of one sample, including the second forward pass of
            gradient checkpointing.
        state_bytes: Bytes of the weights, their average, the gradients and the moments of the optimizer.
        activation_bytes: Peak bytes of the activations of one micro-batch.
        frozen_bytes: Bytes of the weights of a frozen autoencoder, which are not sharded.
    """

    parameters: int
    flops_per_sample: float
    state_bytes: int
    activation_bytes: int
    frozen_bytes: int = 0

    @property
    def memory_bytes(self) -> int:
        """Bytes of the state, the activations and the frozen autoencoder."""
        return self.state_bytes + self.activation_bytes + self.frozen_bytes

    def describe(self) -> str:
        """Return a one-line description for log output."""
        gib = 2**30
        frozen = f", {self.frozen_bytes / gib:.2f} autoencoder" if self.frozen_bytes else ""
        return (
            f"{self.parameters / 1e6:.1f} M parameters, {self.flops_per_sample / 1e9:.1f} GFLOP per sample, "
            f"about {self.memory_bytes / gib:.2f} GiB per worker ({self.state_bytes / gib:.2f} weights and optimizer, "
            f"{self.activation_bytes / gib:.2f} activations{frozen})"
        )


def training_cost(
    network: Any,
    samples: int,
    *,
    optimizer: OptimizerName = "adamw",
    gradient_checkpointing: bool = False,
    precision: Literal["no", "bf16", "fp16"] = "no",
    vae: Any = None,
) -> TrainingCost:
    """Estimate the cost of training `network`.

    Args:
        network: A diffusers network on any device, including meta.
        samples: Samples of one micro-batch of one worker.
        optimizer: The optimizer, which determines the bytes of the moments.
        gradient_checkpointing: Whether the backward pass recomputes activations.
        precision: Mixed precision, see `AUTOCAST_ACTIVATIONS`.
        vae: The frozen autoencoder of a latent network, or None.
    """
    parameters = parameter_count(network)
    network_class: Any = type(network)
    forward_flops, peak_bytes = _dry_run(network_class, network.to_json_string(), samples, gradient_checkpointing)
    bytes_per_parameter = 3 * FLOAT_BYTES + OPTIMIZER_BYTES[optimizer]  # weights, average, gradients, moments
    return TrainingCost(
        parameters=parameters,
        flops_per_sample=forward_flops * (1 + BACKWARD_FLOPS + gradient_checkpointing),
        state_bytes=parameters * bytes_per_parameter,
        activation_bytes=under_autocast(peak_bytes, parameters, precision),
        frozen_bytes=0 if vae is None else parameter_count(vae) * FLOAT_BYTES,
    )


def under_autocast(peak_bytes: int, parameters: int, precision: Literal["no", "bf16", "fp16"]) -> int:
    """Convert the bytes of activations in float32 to those in a mixed precision."""
    if precision == "no":
        return peak_bytes
    return round(peak_bytes * AUTOCAST_ACTIVATIONS) + parameters * AUTOCAST_BYTES


def peak_flops(device_name: str, precision: Literal["bf16", "fp16"] = "bf16") -> float | None:
    """Look up the dense tensor-core peak of a GPU in FLOP/s.

    Args:
        device_name: The result of `torch.cuda.get_device_name`.
        precision: Number format of the matrix multiplications.

    Returns:
        The peak, or None if the full name is unknown. Laptop and Max-Q versions, MIG and vGPU slices, and names with
        `D`, `Ti` or `SUPER` are different devices.
    """
    words = re.split(r"[\s/-]+", device_name.strip().upper())
    model = " ".join(word for word in words if not _IRRELEVANT_WORD.fullmatch(word))
    return (BF16_PEAKS if precision == "bf16" else FP16_PEAKS).get(model)


def share_of_peak(flops_per_sample: float, samples_per_second: float, peak: float) -> float:
    """Compute the utilization of one device: the FLOP/s of training as a fraction of the peak.

    Args:
        flops_per_sample: FLOPs of the forward and backward pass of one sample.
        samples_per_second: Rate of this device.
        peak: Peak of the device in FLOP/s.
    """
    return flops_per_sample * samples_per_second / peak


@lru_cache(maxsize=8)
def _dry_run(network_class: Any, config: str, samples: int, gradient_checkpointing: bool) -> tuple[float, int]:
    """FLOPs of a forward pass of one sample, and peak float32 bytes of both passes of a micro-batch."""
    with torch.device("meta"):
        network = configured(network_class, json.loads(config))
    if gradient_checkpointing:
        network.enable_gradient_checkpointing()
    network.train()
    with FlopCounterMode(display=False) as counter:
        network(**_inputs(network, 1))
    for parameter in network.parameters():
        # Gradients are part of the state. They exist from the second micro-batch of a step on.
        parameter.grad = torch.zeros_like(parameter)
    inputs = _inputs(network, samples)
    state = [tensor for parameter in network.parameters() for tensor in (parameter, parameter.grad)]
    with LiveBytes(ignored=state) as live:
        network(**inputs)[0].square().mean().backward()
    return float(counter.get_total_flops()), live.peak


def _inputs(network: Any, samples: int) -> dict[str, Any]:
    """Keyword arguments of `network` on the meta device."""
    height, width = (side // divisor for side, divisor in zip(image_sides(network), fold_of(network), strict=True))
    inputs: dict[str, Any] = {"timestep": torch.zeros(samples, device="meta"), "return_dict": False}
    if "cross_attention_dim" in network.config:
        inputs["encoder_hidden_states"] = torch.zeros(samples, 1, network.config.cross_attention_dim, device="meta")
    return inputs | {"sample": torch.zeros(samples, network.config.out_channels, height, width, device="meta")}


class LiveBytes(TorchDispatchMode):
    """Dispatch mode that counts the bytes of the live tensors created in its context.

    Args:
        ignored: Existing tensors, which are not counted.

    Attributes:
        current: Bytes of the storages that are alive, each storage counted once.
        peak: Largest value of `current`.
    """

    def __init__(self, ignored: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.current = self.peak = 0
        self.seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet(
            tensor.untyped_storage() for tensor in ignored
        )

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen.add(storage)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return result

    def _count(self, change: int) -> None:
        self.current += change
        self.peak = max(self.peak, self.current)
