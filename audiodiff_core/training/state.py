"""Training state of a denoising network: network, averaged weights, optimizer and progress."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.files.weights import StateDict
from audiodiff_core.models import beats_of, fold_of
from audiodiff_core.training.optimizer import (
    OptimizerName,
    load_moments,
    load_stored_moments,
    make_optimizer,
    moments_of,
    stored_moments,
)
from audiodiff_core.training.weight_average import EMA_DECAY, WeightAverage

MAX_GRADIENT_NORM = 1.0


def memory_format(accelerator: Accelerator) -> torch.memory_format:
    """Return the memory format in which a training step is fastest: channels_last except on CPUs."""
    return torch.contiguous_format if accelerator.device.type == "cpu" else torch.channels_last


class TrainState:
    """State of the training of a denoising network on one or many devices.

    Under FSDP 2 each worker holds a shard of the weights. All workers must call the methods that return or load state
    dicts. Weights are returned unsharded. Moments are returned unsharded on the main process, and empty on the other
    workers. `tensors` and `load_tensors` keep the shards, and involve no other worker.

    Args:
        accelerator: Prepares the network and the optimizer.
        network: The diffusers model to train.
        objective: The training objective.
        learning_rate: The initial learning rate.
        seed: Seed of the random draws.
        vae: The frozen autoencoder of a latent network.
        encoding_parts: Numbers of values of the parts of an encoding that conditioning dropout drops on their own too.
        optimizer: The optimizer.
        ema_decay: Decay of the weight average after its warmup, in [0, 1].
        max_gradient_norm: Norm to which gradients are clipped.
        gradient_checkpointing: Whether to recompute activations in the backward pass, which saves memory.
        compiled: Whether to compile the network with `torch.compile`.

    Attributes:
        network: The network as prepared by accelerate, possibly wrapped or sharded.
        bare: The diffusers model inside `network`.
        fold: Bands and columns of the blocks of pixels that the network works on.
        beats: Beats that the network takes as channels, or None.
        sharded: Whether the weights are sharded over the workers.
        step: Number of completed optimizer steps.
        samples: Number of samples trained on.
        seconds: Training time in seconds.
        skipped: Number of steps that changed nothing because the gradient was not finite, int64 of shape () on the
            device.
        ema: The average of the weights.

    Raises:
        ValueError: For FSDP version 1, and for conditioning dropout with an unconditional network.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        network: Any,
        objective: Objective,
        learning_rate: float,
        seed: int,
        *,
        vae: Any = None,
        encoding_parts: Sequence[int] = (),
        optimizer: OptimizerName = "adamw",
        ema_decay: float = EMA_DECAY,
        max_gradient_norm: float = MAX_GRADIENT_NORM,
        gradient_checkpointing: bool = False,
        compiled: bool = False,
    ) -> None:
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        if self.sharded and not accelerator.is_fsdp2:
            raise ValueError("FSDP version 1 is not supported: use fsdp_version 2, as `training.sharding` does")
        self.fold, self.beats = fold_of(network), beats_of(network)
        # FSDP shards contiguous weights only.
        self.bare = network if self.sharded else network.to(memory_format=memory_format(accelerator))
        self.objective = objective
        self.seed = seed
        self.encoding_parts = tuple(encoding_parts)
        self.max_gradient_norm = max_gradient_norm
        self.conditional = "cross_attention_dim" in network.config
        if objective.conditioning_dropout and not self.conditional:
            raise ValueError(
                f"conditioning_dropout {objective.conditioning_dropout}: the network takes no encodings, omit it"
            )
        self.vae = None if vae is None else vae.to(accelerator.device).requires_grad_(False).eval()
        self.step = 0
        self.samples = 0
        self.seconds = 0.0
        self.skipped = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        if gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if compiled:
            network.compile()
        self.network, self.optimizer = accelerator.prepare(
            network, make_optimizer(optimizer, network, learning_rate, accelerator.device.type)
        )
        self.ema = WeightAverage(list(self.network.parameters()), ema_decay)

    def progress(self) -> dict[str, Any]:
        """Return the progress of the training as JSON values for `load_progress`."""
        scaler = None if self.optimizer.scaler is None else self.optimizer.scaler.state_dict()
        return {
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
            "skipped": int(self.skipped),
            "ema_step": self.ema.steps,
            "scaler": scaler,
        }

    def load_progress(self, progress: dict[str, Any]) -> None:
        """Load the result of `progress`."""
        self.step, self.samples, self.seconds = progress["step"], progress["samples"], progress["seconds"]
        self.skipped.fill_(progress["skipped"])
        self.ema.steps = progress["ema_step"]
        if self.optimizer.scaler is not None:
            self.optimizer.scaler.load_state_dict(progress["scaler"])

    def state_dict(self) -> StateDict:
        """Return the live weights under the names of the diffusers model."""
        return {name: full_tensor(tensor) for name, tensor in self.bare.state_dict().items()}

    def load_state_dict(self, weights: StateDict) -> None:
        """Load the result of `state_dict`."""
        live = self.bare.state_dict()
        assert weights.keys() == live.keys(), "weights of another network"
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(_sharded_like(tensor, weights[name]))

    def ema_state_dict(self) -> StateDict:
        """Return the averaged weights under the names of the diffusers model."""
        return {name: full_tensor(tensor) for name, tensor in self._averages().items()}

    def load_ema_state_dict(self, weights: StateDict) -> None:
        """Load the result of `ema_state_dict`."""
        for (name, _), average in zip(self.bare.named_parameters(), self.ema.weights, strict=True):
            average.copy_(_sharded_like(average, weights[name]))

    def optimizer_state_dict(self) -> dict[str, Any]:
        """Return the moments of the optimizer by parameter name.

        The result consists of tensors and plain values only, and does not depend on the sharding of the weights.
        """
        return moments_of(self.optimizer.optimizer, self.bare)

    def load_optimizer_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `optimizer_state_dict`."""
        load_moments(self.optimizer.optimizer, self.bare, state)

    def tensors(self) -> StateDict:
        """Return the tensors of the state as they are stored, sharded ones as DTensors.

        The names are network.*, average.* and optimizer.*, the last of which are missing before the first optimizer
        step. The tensors share memory with the state.
        """
        optimizer = self.optimizer.optimizer
        return self._named(stored_moments(optimizer, self.bare) if optimizer.state else {})

    def load_tensors(self, read: Callable[[StateDict], None], *, moments: bool) -> None:
        """Load a state by tensors in the form of `tensors`.

        Args:
            read: Function that overwrites the given tensors in place, by their names.
            moments: Whether the moments of the optimizer are among the tensors.
        """
        optimizer = self.optimizer.optimizer
        stored = stored_moments(optimizer, self.bare) if moments else {}
        read(self._named(stored))
        if moments:
            load_stored_moments(optimizer, self.bare, stored)

    def _averages(self) -> StateDict:
        """Return the averaged weights and the buffers as they are stored."""
        parameters = [name for name, _ in self.bare.named_parameters()]
        return {**self.bare.state_dict(), **dict(zip(parameters, self.ema.weights, strict=True))}

    def _named(self, moments: Mapping[str, Any]) -> StateDict:
        """Return network, average and the given moments under the names of `tensors`."""
        return {
            **{f"network.{name}": tensor for name, tensor in self.bare.state_dict().items()},
            **{f"average.{name}": tensor for name, tensor in self._averages().items()},
            **{
                f"optimizer.{parameter}.{name}": tensor
                for parameter, values in moments.get("state", {}).items()
                for name, tensor in values.items()
            },
        }


def sharding() -> FullyShardedDataParallelPlugin:
    """Create a plugin for `Accelerator(fsdp_plugin=...)` that shards each residual block separately.

    Mixed precision is that of autocast, as without FSDP: gradients are reduced and accumulated in float32. Without a
    policy, accelerate would cast weights, gradients and timesteps to 16 bits.
    """
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        mixed_precision_policy=MixedPrecisionPolicy(),
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["ResnetBlock2D"],
        cpu_ram_efficient_loading=False,
    )


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Gather a sharded tensor on the CPU, and return other tensors unchanged."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def _sharded_like(reference: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    """Return `full` with the sharding of `reference`, or unchanged if `reference` is not sharded."""
    if isinstance(reference, DTensor):
        return distribute_tensor(full.to(reference.device), reference.device_mesh, reference.placements)
    return full
