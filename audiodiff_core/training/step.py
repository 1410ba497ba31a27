"""Optimizer step of a denoising network."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from audiodiff_core.diffusion.objectives import losses, weights
from audiodiff_core.latents import latent_factor
from audiodiff_core.latents.posteriors import drawn_latents, posterior_moments
from audiodiff_core.mel import to_model
from audiodiff_core.models import folded
from audiodiff_core.training.draws import Draws, TrainBatch, draws
from audiodiff_core.training.optimizer import update_weights
from audiodiff_core.training.state import TrainState

ENCODED_TOGETHER = 8
"""Images per call of a frozen autoencoder, whose activations for a whole batch could exceed those of the network."""


def train_step(
    accelerator: Accelerator,
    state: TrainState,
    micro_batches: Sequence[TrainBatch],
    rate: float,
    samples: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one optimizer step over the micro-batches of this worker.

    The host does not wait for the device, except with `adamw_8bit`. A step whose gradient is not finite changes the
    counts `state.step` and `state.skipped` only. The average of the weights goes on, toward the same weights.

    Args:
        accelerator: Synchronizes the gradients of all workers.
        state: State of the training. The step updates the weights, their average and the counts.
        micro_batches: Samples of this worker, at least one in each micro-batch.
        rate: The learning rate.
        samples: Mean number of samples per worker. None if every worker has the same number of samples.

    Returns:
        The loss, and the norm of the gradient before clipping, both of shape () on the device. The loss is the sum of
        the losses of this worker's samples divided by `samples`. Its mean over the workers is the mean loss of all
        samples of the step. The norm is the same on all workers.
    """
    total_loss = torch.zeros((), device=accelerator.device)
    samples = samples or sum(map(len, micro_batches))
    for index, batch in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(state.network):
            clean, drawn, encodings = on_device(accelerator, state, batch)
            with accelerator.autocast():
                values = losses(
                    state.network, state.objective, clean, drawn.noise, drawn.timesteps, encodings=encodings
                )
            loss = (values * weights(state.objective, drawn.timesteps)).sum() / samples
            accelerator.backward(loss)
        total_loss += loss.detach()
    norm = accelerator.clip_grad_norm_(state.network.parameters(), state.max_gradient_norm)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    finite = norm.isfinite()
    update_weights(state.optimizer, rate, finite)
    state.ema.update(list(state.network.parameters()))
    state.step += 1
    state.skipped += ~finite
    return total_loss, norm


def with_draws(state: TrainState, batch: TrainBatch) -> TrainBatch:
    """Return a copy of `batch` with the random draws of its samples, made on the device of the batch.

    A training step makes missing draws itself, on its own device.
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
    numbers, latents = batch.numbers, state.vae is not None
    drawn = draws(
        state.seed, numbers, state.objective, shape, latents=latents, parts=state.encoding_parts, device=numbers.device
    )
    return replace(batch, drawn=drawn)


def on_device(
    accelerator: Accelerator, state: TrainState, batch: TrainBatch, dropout: bool = True
) -> tuple[torch.Tensor, Draws, torch.Tensor | None]:
    """Move a batch to the device of the accelerator, and draw what is missing there.

    Args:
        accelerator: The accelerator of the training.
        state: State of the training: seed, objective and VAE.
        batch: Batch on any device, with or without draws.
        dropout: Whether to set the encodings of samples with dropped conditioning to 0.

    Returns:
        The clean images or latents and the draws, in the shape (batch, channels, height, width) that the network takes,
        and the encodings of shape (batch, dim) or None for an unconditional network. For a network that takes beats,
        the encodings have the shape (batch, dim + PLACEMENT): the placements of the beats follow.
    """
    assert state.conditional == (batch.encodings is not None), (
        "conditional networks need encodings, other networks take none"
    )
    batch = batch.to(accelerator.device)
    drawn = batch.drawn or with_draws(state, batch).drawn
    assert drawn is not None
    if state.vae is None:
        assert batch.images is not None
        clean = to_model(batch.images.unsqueeze(1))
    else:
        assert drawn.latent_noise is not None
        moments = _moments(accelerator, state.vae, batch)
        clean = drawn_latents(moments, drawn.latent_noise, state.vae.config.scaling_factor)
    encodings = batch.encodings
    if encodings is not None and dropout:
        kept = drawn.kept.unsqueeze(1)
        encodings = encodings * (kept if drawn.kept_values is None else kept & drawn.kept_values)
    if state.beats is not None and encodings is not None:
        encodings = torch.cat([encodings, state.beats.placements(clean, encodings)], dim=1)
    return folded(clean, state.fold), replace(drawn, noise=folded(drawn.noise, state.fold)), encodings


def _moments(accelerator: Accelerator, vae: Any, batch: TrainBatch) -> torch.Tensor:
    """Means and standard deviations (batch, 2, channels, height, width) of the latents."""
    if batch.latents is not None:
        return batch.latents
    assert batch.images is not None
    with torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=accelerator.mixed_precision == "bf16"):
        return torch.cat([posterior_moments(vae, images) for images in batch.images.split(ENCODED_TOGETHER)])
