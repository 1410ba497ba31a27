"""What training costs: counted and estimated beforehand, related to the device's peak afterwards.

FLOPs are counted on the network itself (torch's flop counter, on the meta device: nothing is computed); a multiplication and an
addition are two. Memory: weights, average, optimizer and gradients are exact; activations are what autograd keeps of one sample,
counted the same way, without the allocator's and kernels' own needs.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from audiodiff_core.models import parameter_count
from audiodiff_core.sampling import image_sides
from audiodiff_core.training import OptimizerName

# Dense bf16 tensor-core peaks in FLOP/s, by a part of the name that CUDA gives, from NVIDIA's data sheets (half of what they state with sparsity).
BF16_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}

OPTIMIZER_BYTES: dict[OptimizerName, int] = {"adamw": 8, "adamw_8bit": 2}
FLOAT_BYTES = 4
BACKWARD_FLOPS = 2  # the gradients of weights and of inputs, each as many as the forward pass


@dataclass(frozen=True)
class TrainingCost:
    """Of training on one worker.

    flops_per_sample: forward and backward (and the forward again, with gradient checkpointing). state_bytes: weights, their average, gradients and
    the optimizer's moments, on each worker (DDP). activation_bytes: kept for the backward pass of one micro-batch (with gradient checkpointing,
    the block that is computed again comes on top).
    """

    parameters: int
    flops_per_sample: float
    state_bytes: int
    activation_bytes: int

    @property
    def memory_bytes(self) -> int:
        return self.state_bytes + self.activation_bytes

    def describe(self) -> str:
        """One line for the user."""
        return (
            f"{self.parameters / 1e6:.1f} M parameters, {self.flops_per_sample / 1e9:.1f} GFLOP per sample, about {self.memory_bytes / 2**30:.2f} GiB "
            f"per worker ({self.state_bytes / 2**30:.2f} weights and optimizer, {self.activation_bytes / 2**30:.2f} activations)"
        )


def training_cost(
    network: Any,
    samples: int,
    *,
    optimizer: OptimizerName = "adamw",
    gradient_checkpointing: bool = False,
    precision: Literal["no", "bf16", "fp16"] = "no",
) -> TrainingCost:
    """The cost of training `network` (on any device, or on meta) with micro-batches of `samples` on each worker."""
    parameters = parameter_count(network)
    network_class: Any = type(network)
    forward, kept = _one_sample(network_class, network.to_json_string(), gradient_checkpointing)
    per_parameter = 3 * FLOAT_BYTES + OPTIMIZER_BYTES[optimizer]
    return TrainingCost(
        parameters=parameters,
        flops_per_sample=forward * (1 + BACKWARD_FLOPS + gradient_checkpointing),
        state_bytes=parameters * per_parameter,
        activation_bytes=kept * samples // (1 if precision == "no" else 2),
    )


def peak_flops(device_name: str) -> float | None:
    """The GPU's dense bf16 peak in FLOP/s, by the name that `torch.cuda.get_device_name` gives; None where it is not in the table."""
    return next((peak for name, peak in BF16_PEAKS.items() if name in device_name), None)


def share_of_peak(flops_per_sample: float, samples_per_second: float, peak: float) -> float:
    """What part of one device's peak training made use of; `samples_per_second` are that device's."""
    return flops_per_sample * samples_per_second / peak


def seconds_needed(samples: int, samples_per_second: float) -> float:
    """Time for so many samples at a rate that was measured."""
    return samples / samples_per_second


@lru_cache(maxsize=8)
def _one_sample(network_class: Any, config: str, gradient_checkpointing: bool) -> tuple[float, int]:
    """FLOPs of one sample's forward pass, and bytes in float32 that autograd keeps of it, on a network of this configuration without data."""
    with torch.device("meta"):
        network = network_class.from_config(json.loads(config))
    if gradient_checkpointing:
        network.enable_gradient_checkpointing()
    network.train()
    height, width = image_sides(network)
    sample = torch.zeros(1, network.config.in_channels, height, width, device="meta")
    condition = {}
    if "cross_attention_dim" in network.config:
        condition = {"encoder_hidden_states": torch.zeros(1, 1, network.config.cross_attention_dim, device="meta")}
    with FlopCounterMode(display=False) as counter, _kept_by_autograd(network) as kept:
        network(sample, torch.zeros(1, device="meta"), **condition, return_dict=False)
    return float(counter.get_total_flops()), sum(kept.values())


@contextmanager
def _kept_by_autograd(network: Any) -> Iterator[dict[int, int]]:
    """Bytes of the tensors saved for the backward pass inside, each storage once; the weights, which are there anyway, not counted."""
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            held.append(tensor)  # or another tensor could come to lie where this one was
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
