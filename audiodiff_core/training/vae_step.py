"""Optimizer step of a VAE and its discriminator.

Latents are drawn with noise that is a function of (seed, sample number). The gradient of a step is the gradient of the
mean loss over all samples of the step.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from audiodiff_core.diffusion import seeds as streams
from audiodiff_core.latents import latent_factor
from audiodiff_core.mel import to_model
from audiodiff_core.training.draws import TrainBatch
from audiodiff_core.training.state import MAX_GRADIENT_NORM
from audiodiff_core.training.vae_losses import (
    discriminator_losses,
    generator_losses,
    kl_losses,
    reconstruction_losses,
    spectral_losses,
)
from audiodiff_core.training.vae_state import VaeTrainState


def train_vae_step(
    accelerator: Accelerator,
    state: VaeTrainState,
    micro_batches: Sequence[TrainBatch],
    rate: float,
    samples: float | None = None,
) -> tuple[dict[str, float], float]:
    """Take one optimizer step of the VAE and, from step `adversarial_start` on, of the discriminator.

    Args:
        accelerator: Synchronizes the gradients of all workers.
        state: State of the training. The step updates the weights, the average and `state.step`.
        micro_batches: Samples of this worker, at least one in each micro-batch.
        rate: The learning rate of both optimizers.
        samples: Mean number of samples per worker. None if every worker has the same number of samples.

    Returns:
        The unweighted losses by name, normalized like the loss of `train_step`, and the norm of the gradient of the VAE
        before clipping.

    Raises:
        FloatingPointError: In all workers, if the gradient of the VAE or of the discriminator is not finite. The
            weights of the network with this gradient do not change.
    """
    objective, adversarial = state.objective, state.objective.adversarial(state.step)
    samples = samples or sum(len(batch.numbers) for batch in micro_batches)
    totals: dict[str, torch.Tensor] = {}
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for index, batch in enumerate(micro_batches):
        with _sync_on_last(accelerator, state.autoencoder, index, len(micro_batches)):
            images, noise = _on_device(accelerator, state, batch)
            with accelerator.autocast():
                made, posterior = state.autoencoder(images, noise)
            made = made.float()
            losses = {
                "reconstruction": reconstruction_losses(made, images),
                "kl": kl_losses(posterior, images[0].numel()).float(),
                "spectral": spectral_losses(made, images),
            }
            weighted = (
                losses["reconstruction"]
                + objective.kl_weight * losses["kl"]
                + objective.spectral_weight * losses["spectral"]
            )
            if adversarial:
                with accelerator.autocast():
                    losses["adversarial"] = generator_losses(_generator_logits(state, made)).float()
                weighted = weighted + objective.adversarial_weight * losses["adversarial"]
                pairs.append((images, made.detach()))
            accelerator.backward(weighted.sum() / samples)
        for name, values in losses.items():
            totals[name] = totals.get(name, 0) + values.detach().sum() / samples
    norm = float(accelerator.clip_grad_norm_(state.autoencoder.parameters(), MAX_GRADIENT_NORM))
    if not math.isfinite(norm):
        state.optimizer.zero_grad()
        raise FloatingPointError(f"gradient norm {norm} at step {state.step}: lower learning_rate")
    _step(state.optimizer, rate)
    state.ema.update(list(state.bare.parameters()))
    if adversarial:
        totals["discriminator"] = _train_discriminator(accelerator, state, pairs, rate, samples)
    state.step += 1
    return {name: float(value) for name, value in totals.items()}, norm


def _generator_logits(state: VaeTrainState, reconstructions: torch.Tensor) -> torch.Tensor:
    """Logits of the frozen discriminator, through which gradients flow to the reconstructions only."""
    # The wrapper `state.discriminator` would synchronize gradients with the other workers.
    state.bare_discriminator.requires_grad_(False)
    logits: torch.Tensor = state.bare_discriminator(reconstructions)
    state.bare_discriminator.requires_grad_(True)
    return logits


def _train_discriminator(
    accelerator: Accelerator,
    state: VaeTrainState,
    pairs: list[tuple[torch.Tensor, torch.Tensor]],
    rate: float,
    samples: float,
) -> torch.Tensor:
    """Take one optimizer step of the discriminator on (images, reconstructions), and return its loss."""
    total_loss = torch.zeros((), device=accelerator.device)
    for index, (images, made) in enumerate(pairs):
        with _sync_on_last(accelerator, state.discriminator, index, len(pairs)):
            with accelerator.autocast():
                image_logits, made_logits = state.discriminator(torch.cat([images, made])).float().chunk(2)
            loss = discriminator_losses(image_logits, made_logits).sum() / samples
            accelerator.backward(loss)
        total_loss += loss.detach()
    norm = float(accelerator.clip_grad_norm_(state.discriminator.parameters(), MAX_GRADIENT_NORM))
    if not math.isfinite(norm):
        state.discriminator_optimizer.zero_grad()
        raise FloatingPointError(f"the discriminator's gradient norm {norm} at step {state.step}: lower learning_rate")
    _step(state.discriminator_optimizer, rate)
    return total_loss


def _sync_on_last(accelerator: Accelerator, module: Any, index: int, count: int) -> Any:
    """Context that synchronizes gradients between workers in the last of `count` micro-batches only."""
    return nullcontext() if index == count - 1 else accelerator.no_sync(module)


def _on_device(accelerator: Accelerator, state: VaeTrainState, batch: TrainBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (batch, 1, y_res, x_res) in [-1, 1], and noise of the shape of their latents."""
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
