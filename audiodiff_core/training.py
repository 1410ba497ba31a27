"""One optimizer step and the state that it changes. Knows one device: accelerate carries it to many, the platform places it.

Noise and timesteps come from (seed, sample number), so that they are the same whichever worker draws a sample, and after a restart.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from diffusers.training_utils import EMAModel

from audiodiff_core import seeds as streams
from audiodiff_core.mel import Images, to_model
from audiodiff_core.objectives import loss

FINAL_LEARNING_RATE_FRACTION = 0.05
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class TrainBatch:
    """Samples by their numbers, counted from the start of training, and their images (batch, y_res, x_res) uint8."""

    numbers: Sequence[int]
    images: Images


class TrainState:
    """The live network, its moving average (kept apart), the optimizer, and how far training has come.

    `network` is what accelerate prepared and may be wrapped; `bare` is the diffusers model inside.
    """

    def __init__(self, accelerator: Accelerator, network: Any, noise_scheduler: Any, learning_rate: float, seed: int) -> None:
        self.bare = network.to(memory_format=torch.channels_last)
        self.noise_scheduler = noise_scheduler
        self.seed = seed
        self.step = 0
        self.samples = 0
        self.seconds = 0.0
        self.network, self.optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters(), lr=learning_rate, fused=True))
        self.ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=True)

    def progress(self) -> dict[str, Any]:
        """How far training has come: JSON values, given back to `load_progress`."""
        scaler = None if self.optimizer.scaler is None else self.optimizer.scaler.state_dict()
        return {"step": self.step, "samples": self.samples, "seconds": self.seconds, "ema_step": self.ema.optimization_step, "scaler": scaler}

    def load_progress(self, progress: dict[str, Any]) -> None:
        self.step, self.samples, self.seconds = progress["step"], progress["samples"], progress["seconds"]
        self.ema.optimization_step = progress["ema_step"]
        if self.optimizer.scaler is not None:
            self.optimizer.scaler.load_state_dict(progress["scaler"])

    def ema_state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged weights under the network's own names."""
        averaged = {name: shadow for (name, _), shadow in zip(self.bare.named_parameters(), self.ema.shadow_params, strict=True)}
        return {**self.bare.state_dict(), **averaged}

    def load_ema_state_dict(self, weights: dict[str, torch.Tensor]) -> None:
        for (name, _), shadow in zip(self.bare.named_parameters(), self.ema.shadow_params, strict=True):
            shadow.copy_(weights[name])


def learning_rate(peak: float, step: int, warmup_steps: int, progress: float) -> float:
    """Linear warm-up over `warmup_steps`, then half a cosine down to a twentieth of `peak` as `progress` goes from 0 to 1."""
    cosine = FINAL_LEARNING_RATE_FRACTION + (1 - FINAL_LEARNING_RATE_FRACTION) * (1 + math.cos(math.pi * min(progress, 1))) / 2
    return peak * min(1.0, (step + 1) / max(1, warmup_steps)) * cosine


def noise_and_timesteps(seed: int, batch: TrainBatch, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (batch, 1, y_res, x_res) ~ N(0, 1) and timesteps (batch,) in [0, levels), each sample's from its own stream."""
    noise = np.empty((len(batch.numbers), 1, *batch.images.shape[1:]), np.float32)
    timesteps = np.empty(len(batch.numbers), np.int64)
    for row, number in enumerate(batch.numbers):
        stream = streams.training_sample(seed, number)
        timesteps[row] = stream.integers(levels)
        stream.standard_normal(out=noise[row], dtype=np.float32)
    return torch.from_numpy(noise), torch.from_numpy(timesteps)


def train_step(accelerator: Accelerator, state: TrainState, micro_batches: Sequence[TrainBatch], rate: float) -> tuple[float, float]:
    """One optimizer step over this worker's micro-batches -> (mean loss of them, gradient norm before clipping).

    Raises FloatingPointError in all workers, the weights untouched, where the gradient is not finite. With a scaler (fp16) it raises only
    where a loss is not finite either: a gradient that overflows is how the scaler finds its scale, and such a step changes no weights.
    """
    total = 0.0
    levels = state.noise_scheduler.config.num_train_timesteps
    for index, batch in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(state.network):
            noise, timesteps = (tensor.to(accelerator.device) for tensor in noise_and_timesteps(state.seed, batch, levels))
            clean = to_model(torch.from_numpy(batch.images).to(accelerator.device).unsqueeze(1))
            with accelerator.autocast():
                value = loss(state.network, state.noise_scheduler, clean, noise, timesteps) / len(micro_batches)
            accelerator.backward(value)
        total += value.detach().item()
    norm = float(accelerator.clip_grad_norm_(state.network.parameters(), MAX_GRADIENT_NORM))
    if not math.isfinite(norm) and (accelerator.scaler is None or not math.isfinite(_of_all_workers(accelerator, total))):
        state.optimizer.zero_grad()
        raise FloatingPointError(f"gradient norm {norm} at step {state.step} (loss {total}): lower learning_rate")
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.step(state.bare.parameters())
    state.step += 1
    return total, norm


def _of_all_workers(accelerator: Accelerator, value: float) -> float:
    shared: torch.Tensor = reduce(torch.tensor(value, device=accelerator.device), reduction="mean")
    return float(shared)
