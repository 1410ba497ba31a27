"""One optimizer step of a VAE (and of the discriminator that judges it), and the state that it changes; as `training` does for denoisers.

The latents' draws come from (seed, sample number). Gradients are those of the mean over all samples of the step.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from audiodiff_core import seeds as streams
from audiodiff_core.files.weights import StateDict
from audiodiff_core.latents import latent_factor
from audiodiff_core.mel import to_model
from audiodiff_core.sampling import image_sides
from audiodiff_core.training.draws import TrainBatch
from audiodiff_core.training.optimizer import load_moments, make_optimizer, moments_of
from audiodiff_core.training.state import MAX_GRADIENT_NORM, memory_format
from audiodiff_core.training.vae_losses import (
    PatchDiscriminator,
    VaeObjective,
    deceiving_losses,
    discriminating_losses,
    kl_losses,
    reconstruction_losses,
    spectral_losses,
)
from audiodiff_core.training.weight_average import EMA_DECAY, WeightAverage


class Autoencoder(nn.Module):
    """An AutoencoderKL whose latents are drawn by noise that is given: images (batch, 1, y_res, x_res) -> their reconstructions and posterior."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, Any]:
        posterior = self.vae.encode(images).latent_dist
        return self.vae.decode(posterior.mean + posterior.std * noise).sample, posterior


class VaeTrainState:
    """The live VAE, its moving average, the discriminator, both optimizers, and how far training has come.

    `autoencoder` and `discriminator` are what accelerate prepared and may be wrapped; `bare` is the diffusers model inside.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        vae: Any,
        objective: VaeObjective,
        learning_rate: float,
        seed: int,
        *,
        ema_decay: float = EMA_DECAY,
        discriminator_channels: int = 64,
        gradient_checkpointing: bool = False,
    ) -> None:
        if accelerator.mixed_precision == "fp16":
            raise ValueError("mixed_precision fp16 is too narrow for a VAE: use bf16 or no")
        if accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError("a VAE is not trained under FSDP, it fits every GPU: use DDP")
        check_sides(objective, vae)
        self.bare = vae.to(memory_format=memory_format(accelerator))
        self.objective = objective
        self.seed = seed
        self.step = 0
        self.samples = 0
        self.seconds = 0.0
        if gradient_checkpointing:
            vae.enable_gradient_checkpointing()
        self.bare_discriminator = PatchDiscriminator(discriminator_channels)
        device = accelerator.device.type
        self.autoencoder, self.optimizer = accelerator.prepare(
            Autoencoder(vae), make_optimizer("adamw", vae, learning_rate, device)
        )
        self.discriminator, self.discriminator_optimizer = accelerator.prepare(
            self.bare_discriminator, make_optimizer("adamw", self.bare_discriminator, learning_rate, device)
        )
        self.ema = WeightAverage(list(vae.parameters()), ema_decay)

    def progress(self) -> dict[str, Any]:
        """How far training has come: JSON values, given back to `load_progress`."""
        return {"step": self.step, "samples": self.samples, "seconds": self.seconds, "ema_step": self.ema.steps}

    def load_progress(self, progress: dict[str, Any]) -> None:
        self.step, self.samples, self.seconds = progress["step"], progress["samples"], progress["seconds"]
        self.ema.steps = progress["ema_step"]

    def state_dict(self) -> StateDict:
        """The live weights of VAE (`vae.`) and discriminator (`discriminator.`)."""
        parts = (("vae", self.bare), ("discriminator", self.bare_discriminator))
        return {f"{part}.{name}": tensor for part, module in parts for name, tensor in module.state_dict().items()}

    def load_state_dict(self, weights: StateDict) -> None:
        for part, module in (("vae.", self.bare), ("discriminator.", self.bare_discriminator)):
            module.load_state_dict(
                {name.removeprefix(part): tensor for name, tensor in weights.items() if name.startswith(part)}
            )

    def ema_state_dict(self) -> StateDict:
        """The averaged weights of the VAE under its own names."""
        averaged = {
            name: average for (name, _), average in zip(self.bare.named_parameters(), self.ema.weights, strict=True)
        }
        return {**self.bare.state_dict(), **averaged}

    def load_ema_state_dict(self, weights: StateDict) -> None:
        for (name, _), average in zip(self.bare.named_parameters(), self.ema.weights, strict=True):
            average.copy_(weights[name])

    def optimizer_state_dict(self) -> dict[str, Any]:
        """Both optimizers' moments by parameter name; tensors and plain values only."""
        return {name: moments_of(optimizer, module) for name, module, optimizer in self._optimizers()}

    def load_optimizer_state_dict(self, state: dict[str, Any]) -> None:
        for name, module, optimizer in self._optimizers():
            load_moments(optimizer, module, state[name])

    def _optimizers(self) -> list[tuple[str, Any, torch.optim.Optimizer]]:
        return [
            ("vae", self.bare, self.optimizer.optimizer),
            ("discriminator", self.bare_discriminator, self.discriminator_optimizer.optimizer),
        ]


def check_sides(objective: VaeObjective, vae: Any) -> None:
    """Raises ValueError where the images of an autoencoder are too small for the discriminator that is to judge them."""
    height, width = image_sides(vae)
    smallest = PatchDiscriminator.smallest_side
    if objective.adversarial_weight and min(height, width) < smallest:
        raise ValueError(
            f"images of {width}x{height} are too small for the discriminator, which needs {smallest}: set adversarial_weight 0"
        )


def train_vae_step(
    accelerator: Accelerator,
    state: VaeTrainState,
    micro_batches: Sequence[TrainBatch],
    rate: float,
    samples: float | None = None,
) -> tuple[dict[str, float], float]:
    """Take one optimizer step of the VAE, and from `adversarial_start` on one of the discriminator.

    Args:
        accelerator: Synchronises the gradients of all workers.
        state: The VAE, the discriminator and their optimizers.
        micro_batches: The share of this worker, at least one sample in each.
        rate: The learning rate.
        samples: The mean number of samples of a worker, where shares differ; None where every worker has as many.

    Returns:
        The losses by name, before their weights, scaled as the loss of `train_step`; and the gradient norm of the VAE
        before clipping.

    Raises:
        FloatingPointError: In all workers, if a gradient is not finite: the weights that it was for are untouched.
    """
    objective, adversarial = state.objective, state.objective.adversarial(state.step)
    samples = samples or sum(len(batch.numbers) for batch in micro_batches)
    totals: dict[str, torch.Tensor] = {}
    judged: list[tuple[torch.Tensor, torch.Tensor]] = []
    for index, batch in enumerate(micro_batches):
        with _synchronised_last(accelerator, state.autoencoder, index, len(micro_batches)):
            images, noise = _on_device(accelerator, state, batch)
            with accelerator.autocast():
                made, posterior = state.autoencoder(images, noise)
            made = made.float()
            each = {
                "reconstruction": reconstruction_losses(made, images),
                "kl": kl_losses(posterior, images[0].numel()).float(),
                "spectral": spectral_losses(made, images),
            }
            weighed = (
                each["reconstruction"] + objective.kl_weight * each["kl"] + objective.spectral_weight * each["spectral"]
            )
            if adversarial:
                with accelerator.autocast():
                    each["adversarial"] = deceiving_losses(_verdicts_for_the_vae(state, made)).float()
                weighed = weighed + objective.adversarial_weight * each["adversarial"]
                judged.append((images, made.detach()))
            accelerator.backward(weighed.sum() / samples)
        for name, values in each.items():
            totals[name] = totals.get(name, 0) + values.detach().sum() / samples
    norm = float(accelerator.clip_grad_norm_(state.autoencoder.parameters(), MAX_GRADIENT_NORM))
    if not math.isfinite(norm):
        state.optimizer.zero_grad()
        raise FloatingPointError(f"gradient norm {norm} at step {state.step}: lower learning_rate")
    _step(state.optimizer, rate)
    state.ema.update(list(state.bare.parameters()))
    if adversarial:
        totals["discriminator"] = _train_discriminator(accelerator, state, judged, rate, samples)
    state.step += 1
    return {name: float(value) for name, value in totals.items()}, norm


def _verdicts_for_the_vae(state: VaeTrainState, made: torch.Tensor) -> torch.Tensor:
    """Verdicts through which gradients flow to the reconstructions, but not to the discriminator (nor to other workers through its wrapper)."""
    state.bare_discriminator.requires_grad_(False)
    verdicts: torch.Tensor = state.bare_discriminator(made)
    state.bare_discriminator.requires_grad_(True)
    return verdicts


def _train_discriminator(
    accelerator: Accelerator,
    state: VaeTrainState,
    judged: list[tuple[torch.Tensor, torch.Tensor]],
    rate: float,
    samples: float,
) -> torch.Tensor:
    total = torch.zeros((), device=accelerator.device)
    for index, (images, made) in enumerate(judged):
        with _synchronised_last(accelerator, state.discriminator, index, len(judged)):
            with accelerator.autocast():
                of_images, of_reconstructions = state.discriminator(torch.cat([images, made])).float().chunk(2)
            value = discriminating_losses(of_images, of_reconstructions).sum() / samples
            accelerator.backward(value)
        total += value.detach()
    norm = float(accelerator.clip_grad_norm_(state.discriminator.parameters(), MAX_GRADIENT_NORM))
    if not math.isfinite(norm):
        state.discriminator_optimizer.zero_grad()
        raise FloatingPointError(f"the discriminator's gradient norm {norm} at step {state.step}: lower learning_rate")
    _step(state.discriminator_optimizer, rate)
    return total


def _synchronised_last(accelerator: Accelerator, module: Any, index: int, count: int) -> Any:
    return nullcontext() if index == count - 1 else accelerator.no_sync(module)


def _on_device(accelerator: Accelerator, state: VaeTrainState, batch: TrainBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (batch, 1, y_res, x_res) in [-1, 1] and the noise of their latents' draws, each sample's from its own stream."""
    assert batch.images is not None
    images = to_model(torch.from_numpy(batch.images).to(accelerator.device).unsqueeze(1))
    factor = latent_factor(state.bare)
    shape = (state.bare.config.latent_channels, images.shape[2] // factor, images.shape[3] // factor)
    noise = np.empty((len(batch.numbers), *shape), np.float32)
    for row, number in enumerate(batch.numbers):
        streams.training_sample(state.seed, number).standard_normal(out=noise[row], dtype=np.float32)
    return images, torch.from_numpy(noise).to(accelerator.device)


def _step(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
