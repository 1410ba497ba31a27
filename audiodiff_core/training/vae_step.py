"""Optimizer step of a VAE and its discriminator.

Latents are drawn with noise that is a function of (seed, sample number). The gradient of a step is the gradient of the
mean loss over all samples of the step.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator

from audiodiff_core.diffusion.philox import Purpose, normals
from audiodiff_core.latents import latent_factor
from audiodiff_core.mel import to_model
from audiodiff_core.training.draws import TrainBatch
from audiodiff_core.training.optimizer import update_weights
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
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Take one optimizer step of the VAE and, from step `adversarial_start` on, of the discriminator.

    The host does not wait for the device. If the gradient of either network is not finite, the step changes the counts
    `state.step` and `state.skipped` only. The average of the weights goes on, toward the same weights.

    Args:
        accelerator: Synchronizes the gradients of all workers.
        state: State of the training. The step updates the weights, the average and the counts.
        micro_batches: Samples of this worker, at least one in each micro-batch.
        rate: The learning rate of both optimizers.
        samples: Mean number of samples per worker. None if every worker has the same number of samples.

    Returns:
        The unweighted losses by name, normalized like the loss of `train_step`, and the norm of the gradient of the VAE
        before clipping, all of shape () on the device.
    """
    objective, adversarial = state.objective, state.objective.adversarial(state.step)
    samples = samples or sum(map(len, micro_batches))
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
    norm: torch.Tensor = accelerator.clip_grad_norm_(state.autoencoder.parameters(), MAX_GRADIENT_NORM)
    finite = norm.isfinite()
    if adversarial:
        totals["discriminator"] = _discriminator_gradient(accelerator, state, pairs, samples)
        finite &= accelerator.clip_grad_norm_(state.discriminator.parameters(), MAX_GRADIENT_NORM).isfinite()
        update_weights(state.discriminator_optimizer, rate, finite)
    update_weights(state.optimizer, rate, finite)
    state.ema.update(list(state.bare.parameters()))
    state.step += 1
    state.skipped += ~finite
    return totals, norm


def _generator_logits(state: VaeTrainState, reconstructions: torch.Tensor) -> torch.Tensor:
    """Logits of the frozen discriminator, through which gradients flow to the reconstructions only."""
    # The wrapper `state.discriminator` would synchronize gradients with the other workers.
    state.bare_discriminator.requires_grad_(False)
    logits: torch.Tensor = state.bare_discriminator(reconstructions)
    state.bare_discriminator.requires_grad_(True)
    return logits


def _discriminator_gradient(
    accelerator: Accelerator, state: VaeTrainState, pairs: list[tuple[torch.Tensor, torch.Tensor]], samples: float
) -> torch.Tensor:
    """Compute the gradient of the discriminator for (images, reconstructions), and return its loss."""
    total_loss = torch.zeros((), device=accelerator.device)
    for index, (images, made) in enumerate(pairs):
        with _sync_on_last(accelerator, state.discriminator, index, len(pairs)):
            with accelerator.autocast():
                image_logits, made_logits = state.discriminator(torch.cat([images, made])).float().chunk(2)
            loss = discriminator_losses(image_logits, made_logits).sum() / samples
            accelerator.backward(loss)
        total_loss += loss.detach()
    return total_loss


def _sync_on_last(accelerator: Accelerator, module: Any, index: int, count: int) -> Any:
    """Context that synchronizes gradients between workers in the last of `count` micro-batches only."""
    return nullcontext() if index == count - 1 else accelerator.no_sync(module)


def _on_device(accelerator: Accelerator, state: VaeTrainState, batch: TrainBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (batch, 1, y_res, x_res) in [-1, 1], and noise of the shape of their latents."""
    batch = batch.to(accelerator.device)
    assert batch.images is not None
    images = to_model(batch.images.unsqueeze(1))
    factor = latent_factor(state.bare)
    shape = (state.bare.config.latent_channels, images.shape[2] // factor, images.shape[3] // factor)
    return images, normals(state.seed, batch.numbers, Purpose.LATENT_NOISE, shape, accelerator.device)
