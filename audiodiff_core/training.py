"""One optimizer step and the state that it changes. Knows one device: accelerate carries it to many, the platform places it.

Noise, timesteps, dropout and draws of latents come from (seed, sample number), so that they are the same whichever worker draws a
sample, and after a restart. The gradient is that of the mean loss over all samples of the step, whatever the workers and micro-batches.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType, reduce
from torch.distributed.checkpoint import state_dict as distributed
from torch.distributed.tensor import DTensor, distribute_tensor

from audiodiff_core import seeds as streams
from audiodiff_core.latents import latent_factor
from audiodiff_core.mel import Images, to_model
from audiodiff_core.objectives import Objective, losses, weights
from audiodiff_core.posteriors import drawn_latents, posterior_moments
from audiodiff_core.weight_average import EMA_DECAY, WeightAverage

RateSchedule = Literal["cosine", "linear", "constant"]
OptimizerName = Literal["adamw", "adamw_8bit"]

FINAL_LEARNING_RATE_FRACTION = 0.05
MAX_GRADIENT_NORM = 1.0

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TrainBatch:
    """Samples by their numbers, counted from the start of training, as images or as latents made before.

    images: (batch, y_res, x_res) uint8, or None where `latents` are given. encodings: (batch, dim) float32, for a conditional network.
    latents: (batch, 2, channels, height, width) float32, mean and standard deviation as `posteriors` has them. drawn: what `with_draws` adds.
    """

    numbers: Sequence[int]
    images: Images | None
    encodings: npt.NDArray[np.float32] | None = None
    latents: npt.NDArray[np.float32] | None = None
    drawn: "Draws | None" = None


@dataclass(frozen=True)
class Draws:
    """What chance decides for each sample of a batch, on the CPU.

    timesteps: (batch,) int64, or float32 for a flow. noise: (batch, channels, height, width) ~ N(0, 1). kept: (batch,) bool, whether the
    encoding is shown. latent_noise: as noise, which latents are drawn by; None where the network works on images.
    """

    timesteps: torch.Tensor
    noise: torch.Tensor
    kept: torch.Tensor
    latent_noise: torch.Tensor | None


def draws(seed: int, numbers: Sequence[int], objective: Objective, shape: tuple[int, ...], latents: bool = False) -> Draws:
    """Each sample's from its own stream: timestep, noise of `shape` (channels, height, width), dropout, noise of the latent's draw."""
    timesteps = np.empty(len(numbers), np.float32 if objective.prediction_type == "flow" else np.int64)
    noise = np.empty((len(numbers), *shape), np.float32)
    kept = np.empty(len(numbers), np.bool_)
    latent_noise = np.empty_like(noise) if latents else None
    for row, number in enumerate(numbers):
        stream = streams.training_sample(seed, number)
        timesteps[row] = objective.draw_timestep(stream)
        stream.standard_normal(out=noise[row], dtype=np.float32)
        kept[row] = stream.random() >= objective.conditioning_dropout
        if latent_noise is not None:
            stream.standard_normal(out=latent_noise[row], dtype=np.float32)
    latent = None if latent_noise is None else torch.from_numpy(latent_noise)
    return Draws(torch.from_numpy(timesteps), torch.from_numpy(noise), torch.from_numpy(kept), latent)


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
        self.bare = network if sharded else network.to(memory_format=memory_format(accelerator))  # FSDP shards contiguous weights only
        self.objective = objective
        self.seed = seed
        self.max_gradient_norm = max_gradient_norm
        self.conditional = "cross_attention_dim" in network.config
        if objective.conditioning_dropout and not self.conditional:
            raise ValueError(f"conditioning_dropout {objective.conditioning_dropout}: the network takes no encodings, leave it out")
        self.vae = None if vae is None else vae.to(accelerator.device).requires_grad_(False).eval()
        self.step = 0
        self.samples = 0
        self.seconds = 0.0
        if gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if compiled:
            network.compile()
        self.network, self.optimizer = accelerator.prepare(network, make_optimizer(optimizer, network, learning_rate, accelerator.device.type))
        self.ema = WeightAverage(list(self.network.parameters()), ema_decay)

    def progress(self) -> dict[str, Any]:
        """How far training has come: JSON values, given back to `load_progress`."""
        scaler = None if self.optimizer.scaler is None else self.optimizer.scaler.state_dict()
        return {"step": self.step, "samples": self.samples, "seconds": self.seconds, "ema_step": self.ema.steps, "scaler": scaler}

    def load_progress(self, progress: dict[str, Any]) -> None:
        self.step, self.samples, self.seconds = progress["step"], progress["samples"], progress["seconds"]
        self.ema.steps = progress["ema_step"]
        if self.optimizer.scaler is not None:
            self.optimizer.scaler.load_state_dict(progress["scaler"])

    def state_dict(self) -> Weights:
        """The live weights under the network's own names."""
        return {name: _whole(tensor) for name, tensor in self.bare.state_dict().items()}

    def load_state_dict(self, weights: Weights) -> None:
        held = self.bare.state_dict()
        assert weights.keys() == held.keys(), "weights of another network"
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.copy_(_like(weights[name], tensor))

    def ema_state_dict(self) -> Weights:
        """The averaged weights under the network's own names."""
        averaged = {name: _whole(average) for (name, _), average in zip(self.bare.named_parameters(), self.ema.weights, strict=True)}
        buffers = {name: tensor for name, tensor in self.bare.state_dict().items() if name not in averaged}
        return {**buffers, **averaged}

    def load_ema_state_dict(self, weights: Weights) -> None:
        for (name, _), average in zip(self.bare.named_parameters(), self.ema.weights, strict=True):
            average.copy_(_like(weights[name], average))

    def optimizer_state_dict(self) -> dict[str, Any]:
        """The optimizer's moments by parameter name, the same however the weights were sharded; tensors and plain values only."""
        return moments_of(self.optimizer.optimizer, self.bare)

    def load_optimizer_state_dict(self, state: dict[str, Any]) -> None:
        load_moments(self.optimizer.optimizer, self.bare, state)


def moments_of(optimizer: torch.optim.Optimizer, network: Any) -> dict[str, Any]:
    """An optimizer's moments by parameter name, whole and on the CPU: none before its first step.

    (Asked then, torch would make some by a step of no length, which the optimizer would go on counting.)
    """
    if not optimizer.state:
        return {}
    return distributed.get_optimizer_state_dict(network, optimizer, options=distributed.StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_moments(optimizer: torch.optim.Optimizer, network: Any, moments: dict[str, Any]) -> None:
    """Gives a new optimizer what `moments_of` gave."""
    if moments:
        distributed.set_optimizer_state_dict(network, optimizer, moments, options=distributed.StateDictOptions(full_state_dict=True))


def sharding() -> FullyShardedDataParallelPlugin:
    """How FSDP shards these networks, for `Accelerator(fsdp_plugin=...)`: each residual block by itself, the rest together."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["ResnetBlock2D"], cpu_ram_efficient_loading=False
    )


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor of which this worker may hold a shard; shards come together on the CPU."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def _like(whole: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """What this worker holds of a tensor: all of it, or the shard that `held` is."""
    return distribute_tensor(whole.to(held.device), held.device_mesh, held.placements) if isinstance(held, DTensor) else whole


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


def learning_rate(peak: float, step: int, warmup_steps: int, progress: float, schedule: RateSchedule = "cosine") -> float:
    """Linear warm-up over `warmup_steps`, then down to a twentieth of `peak` as `progress` goes from 0 to 1: half a cosine or a line; or constant."""
    done = min(progress, 1)
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[schedule]
    fraction = FINAL_LEARNING_RATE_FRACTION + (1 - FINAL_LEARNING_RATE_FRACTION) * left
    return peak * min(1.0, (step + 1) / max(1, warmup_steps)) * fraction


def train_step(
    accelerator: Accelerator, state: TrainState, micro_batches: Sequence[TrainBatch], rate: float, samples: float | None = None
) -> tuple[float, float]:
    """Take one optimizer step over the micro-batches of this worker -> (loss, gradient norm before clipping).

    The loss is this worker's part of the mean over all samples of the step, times the number of workers, so that its mean
    over the workers, like that of the gradients, is the mean over the samples.

    Args:
        accelerator: Synchronises the gradients of all workers.
        state: The network and its optimizer.
        micro_batches: The share of this worker, at least one sample in each.
        rate: The learning rate.
        samples: The mean number of samples of a worker, where shares differ; None where every worker has as many.

    Raises:
        FloatingPointError: In all workers, if the gradient is not finite; the weights are untouched. With a scaler (fp16)
            only if a loss is not finite either: a gradient that overflows is how the scaler finds its scale, and such a
            step changes no weights.
    """
    total = torch.zeros((), device=accelerator.device)
    samples = samples or sum(len(batch.numbers) for batch in micro_batches)
    for index, batch in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(state.network):
            clean, drawn, encodings = on_device(accelerator, state, batch)
            with accelerator.autocast():
                each = losses(state.network, state.objective, clean, drawn.noise, drawn.timesteps, encodings=encodings)
            value = (each * weights(state.objective, drawn.timesteps)).sum() / samples
            accelerator.backward(value)
        total += value.detach()
    norm = float(_whole(accelerator.clip_grad_norm_(state.network.parameters(), state.max_gradient_norm)))
    loss = float(total)
    if not math.isfinite(norm) and (accelerator.scaler is None or not math.isfinite(_of_all_workers(accelerator, loss))):
        state.optimizer.zero_grad()
        raise FloatingPointError(f"gradient norm {norm} at step {state.step} (loss {loss}): lower learning_rate")
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    if math.isfinite(norm):  # or the scaler of fp16 has left the weights as they were
        state.ema.update(list(state.network.parameters()))
    state.step += 1
    return loss, norm


def with_draws(state: TrainState, batch: TrainBatch) -> TrainBatch:
    """The batch with its draws, which a step makes where they are missing. They take a millisecond for 256x256 values on a CPU, for which a GPU
    would wait: a loader's thread should make them ahead (numpy lets other threads run meanwhile).
    """
    if state.vae is None:
        assert batch.images is not None
        shape: tuple[int, ...] = (1, *batch.images.shape[1:])
    elif batch.latents is not None:
        shape = batch.latents.shape[2:]
    else:
        assert batch.images is not None
        factor = latent_factor(state.vae)
        shape = (state.vae.config.latent_channels, *(side // factor for side in batch.images.shape[1:]))
    return replace(batch, drawn=draws(state.seed, batch.numbers, state.objective, shape, latents=state.vae is not None))


def on_device(accelerator: Accelerator, state: TrainState, batch: TrainBatch, dropout: bool = True) -> tuple[torch.Tensor, Draws, torch.Tensor | None]:
    """What the network is trained on, on its device: clean images or latents (batch, channels, height, width), the draws, and the encodings
    (batch, dim), those dropped at zero; None for an unconditional network. Images travel as uint8.
    """
    device = accelerator.device
    assert state.conditional == (batch.encodings is not None), "a conditional network, and no other, takes encodings"
    drawn = _moved(batch.drawn or with_draws(state, batch).drawn, device)
    if state.vae is None:
        clean = to_model(torch.from_numpy(batch.images).to(device).unsqueeze(1))
    else:
        assert drawn.latent_noise is not None
        clean = drawn_latents(_moments(accelerator, state.vae, batch), drawn.latent_noise, state.vae.config.scaling_factor)
    encodings = None if batch.encodings is None else torch.from_numpy(batch.encodings).to(device)
    if encodings is not None and dropout:
        encodings = encodings * drawn.kept.unsqueeze(1)
    return clean, drawn, encodings


def _moments(accelerator: Accelerator, vae: Any, batch: TrainBatch) -> torch.Tensor:
    if batch.latents is not None:
        return torch.from_numpy(batch.latents).to(accelerator.device)
    assert batch.images is not None
    with torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=accelerator.mixed_precision == "bf16"):
        return posterior_moments(vae, batch.images)


def _moved(drawn: Draws | None, device: torch.device) -> Draws:
    assert drawn is not None
    latent_noise = None if drawn.latent_noise is None else drawn.latent_noise.to(device)
    return Draws(drawn.timesteps.to(device), drawn.noise.to(device), drawn.kept.to(device), latent_noise)


def _of_all_workers(accelerator: Accelerator, value: float) -> float:
    shared: torch.Tensor = reduce(torch.tensor(value, device=accelerator.device), reduction="mean")
    return float(shared)
