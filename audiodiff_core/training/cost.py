"""What training costs: counted and estimated beforehand, related to the device's peak afterwards.

FLOPs are counted on the network itself (torch's flop counter, on the meta device: nothing is computed); a multiplication and an
addition are two. Memory: weights, average, optimizer and gradients are exact; activations are the most that a forward and a backward pass
hold beyond those, counted the same way, without the allocator's and kernels' own needs.
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

from audiodiff_core.models import parameter_count
from audiodiff_core.sampling import image_sides
from audiodiff_core.training.optimizer import OptimizerName

# Dense tensor-core peaks in FLOP/s from NVIDIA's data sheets (half of a figure with sparsity), by the words of the
# CUDA name that tell the model.
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
"""The same peaks in fp16, and those of GPUs without bf16."""

# Words of a CUDA name that leave the peak as it is. Boards of 64 GB are made for one customer each, with peaks of
# their own.
_WITHOUT_EFFECT = re.compile(r"NVIDIA|TESLA|GEFORCE|(?!64)\d+GB?|HBM3E?")

OPTIMIZER_BYTES: dict[OptimizerName, int] = {"adamw": 8, "adamw_8bit": 2}
FLOAT_BYTES = 4
BACKWARD_FLOPS = 2  # the gradients of weights and of inputs, each as many as the forward pass


@dataclass(frozen=True)
class TrainingCost:
    """Of training on one worker.

    flops_per_sample: forward and backward (and the forward again, with gradient checkpointing). state_bytes: weights, their average, gradients and
    the optimizer's moments, on each worker (DDP). activation_bytes: the most that the passes of one micro-batch hold at a time (with gradient
    checkpointing, the block that is computed again among it).
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
    forward, held = _passes(network_class, network.to_json_string(), samples, gradient_checkpointing)
    per_parameter = 3 * FLOAT_BYTES + OPTIMIZER_BYTES[optimizer]
    return TrainingCost(
        parameters=parameters,
        flops_per_sample=forward * (1 + BACKWARD_FLOPS + gradient_checkpointing),
        state_bytes=parameters * per_parameter,
        activation_bytes=held // (1 if precision == "no" else 2),
    )


def peak_flops(device_name: str, precision: Literal["bf16", "fp16"] = "bf16") -> float | None:
    """Look up a GPU's dense tensor-core peak in FLOP/s by the name that `torch.cuda.get_device_name` gives.

    The whole name must be known. None for any other: laptop and Max-Q versions, MIG and vGPU slices, `D`, `Ti` and
    `SUPER` are other devices.
    """
    words = re.split(r"[\s/-]+", device_name.strip().upper())
    model = " ".join(word for word in words if not _WITHOUT_EFFECT.fullmatch(word))
    return (BF16_PEAKS if precision == "bf16" else FP16_PEAKS).get(model)


def share_of_peak(flops_per_sample: float, samples_per_second: float, peak: float) -> float:
    """What part of one device's peak training made use of; `samples_per_second` are that device's."""
    return flops_per_sample * samples_per_second / peak


def seconds_needed(samples: int, samples_per_second: float) -> float:
    """Time for so many samples at a rate that was measured."""
    return samples / samples_per_second


@lru_cache(maxsize=8)
def _passes(network_class: Any, config: str, samples: int, gradient_checkpointing: bool) -> tuple[float, int]:
    """FLOPs of one sample's forward pass, and the most bytes in float32 that forward and backward of so many samples hold, counted without data."""
    with torch.device("meta"):
        network = network_class.from_config(json.loads(config))
    if gradient_checkpointing:
        network.enable_gradient_checkpointing()
    network.train()
    with FlopCounterMode(display=False) as counter:
        network(**_inputs(network, 1))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)  # there already, of the micro-batch before
    inputs = _inputs(network, samples)
    with LiveBytes(parameter for weight in network.parameters() for parameter in (weight, weight.grad)) as live:
        network(**inputs)[0].square().mean().backward()
    return float(counter.get_total_flops()), live.most


def _inputs(network: Any, samples: int) -> dict[str, Any]:
    height, width = image_sides(network)
    inputs: dict[str, Any] = {"timestep": torch.zeros(samples, device="meta"), "return_dict": False}
    if "cross_attention_dim" in network.config:
        inputs["encoder_hidden_states"] = torch.zeros(samples, 1, network.config.cross_attention_dim, device="meta")
    return inputs | {"sample": torch.zeros(samples, network.config.in_channels, height, width, device="meta")}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that live, each storage once, of those made inside; `known` ones were there before. `most`: at one time."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen.add(storage)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return result

    def _count(self, more: int) -> None:
        self.now += more
        self.most = max(self.most, self.now)
