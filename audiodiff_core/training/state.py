"""State of a training: network, averaged weights, optimizer and progress, on one or many devices."""

from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor, distribute_tensor

from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.files.weights import StateDict
from audiodiff_core.training.optimizer import OptimizerName, load_moments, make_optimizer, moments_of
from audiodiff_core.training.weight_average import EMA_DECAY, WeightAverage

MAX_GRADIENT_NORM = 1.0


def memory_format(accelerator: Accelerator) -> torch.memory_format:
    """How a network that learns keeps its values: channels_last where tensor cores want it; on CPUs it makes a step slower."""
    return torch.contiguous_format if accelerator.device.type == "cpu" else torch.channels_last


class TrainState:
    """The live network, its moving average (kept apart), the optimizer, and how far training has come.

    `network` is what accelerate prepared and may be wrapped or sharded; `bare` is the diffusers model inside. `vae` is the frozen
    autoencoder of a latent network. Under FSDP (version 2), every worker must call the methods that give or take weights, each holds its
    shard, and the whole comes out on the main process (elsewhere: empty).
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
        optimizer: OptimizerName = "adamw",
        ema_decay: float = EMA_DECAY,
        max_gradient_norm: float = MAX_GRADIENT_NORM,
        gradient_checkpointing: bool = False,
        compiled: bool = False,
    ) -> None:
        sharded = accelerator.distributed_type == DistributedType.FSDP
        if sharded and not accelerator.is_fsdp2:
            raise ValueError("FSDP version 1 is not supported: use fsdp_version 2, as `training.sharding` does")
        self.bare = (
            network if sharded else network.to(memory_format=memory_format(accelerator))
        )  # FSDP shards contiguous weights only
        self.objective = objective
        self.seed = seed
        self.max_gradient_norm = max_gradient_norm
        self.conditional = "cross_attention_dim" in network.config
        if objective.conditioning_dropout and not self.conditional:
            raise ValueError(
                f"conditioning_dropout {objective.conditioning_dropout}: the network takes no encodings, leave it out"
            )
        self.vae = None if vae is None else vae.to(accelerator.device).requires_grad_(False).eval()
        self.step = 0
        self.samples = 0
        self.seconds = 0.0
        if gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if compiled:
            network.compile()
        self.network, self.optimizer = accelerator.prepare(
            network, make_optimizer(optimizer, network, learning_rate, accelerator.device.type)
        )
        self.ema = WeightAverage(list(self.network.parameters()), ema_decay)

    def progress(self) -> dict[str, Any]:
        """How far training has come: JSON values, given back to `load_progress`."""
        scaler = None if self.optimizer.scaler is None else self.optimizer.scaler.state_dict()
        return {
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
            "ema_step": self.ema.steps,
            "scaler": scaler,
        }

    def load_progress(self, progress: dict[str, Any]) -> None:
        self.step, self.samples, self.seconds = progress["step"], progress["samples"], progress["seconds"]
        self.ema.steps = progress["ema_step"]
        if self.optimizer.scaler is not None:
            self.optimizer.scaler.load_state_dict(progress["scaler"])

    def state_dict(self) -> StateDict:
        """The live weights under the network's own names."""
        return {name: whole_tensor(tensor) for name, tensor in self.bare.state_dict().items()}

    def load_state_dict(self, weights: StateDict) -> None:
        held = self.bare.state_dict()
        assert weights.keys() == held.keys(), "weights of another network"
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.copy_(_like(weights[name], tensor))

    def ema_state_dict(self) -> StateDict:
        """The averaged weights under the network's own names."""
        averaged = {
            name: whole_tensor(average)
            for (name, _), average in zip(self.bare.named_parameters(), self.ema.weights, strict=True)
        }
        buffers = {name: tensor for name, tensor in self.bare.state_dict().items() if name not in averaged}
        return {**buffers, **averaged}

    def load_ema_state_dict(self, weights: StateDict) -> None:
        for (name, _), average in zip(self.bare.named_parameters(), self.ema.weights, strict=True):
            average.copy_(_like(weights[name], average))

    def optimizer_state_dict(self) -> dict[str, Any]:
        """The optimizer's moments by parameter name, the same however the weights were sharded; tensors and plain values only."""
        return moments_of(self.optimizer.optimizer, self.bare)

    def load_optimizer_state_dict(self, state: dict[str, Any]) -> None:
        load_moments(self.optimizer.optimizer, self.bare, state)


def sharding() -> FullyShardedDataParallelPlugin:
    """How FSDP shards these networks, for `Accelerator(fsdp_plugin=...)`: each residual block by itself, the rest together."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["ResnetBlock2D"],
        cpu_ram_efficient_loading=False,
    )


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this worker may hold a shard; shards come together on the CPU."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def _like(whole: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """What this worker holds of a tensor: all of it, or the shard that `held` is."""
    return (
        distribute_tensor(whole.to(held.device), held.device_mesh, held.placements)
        if isinstance(held, DTensor)
        else whole
    )
