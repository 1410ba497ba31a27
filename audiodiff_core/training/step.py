"""Optimizer step of a denoising network."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import reduce

from audiodiff_core.diffusion.objectives import losses, weights
from audiodiff_core.latents import latent_factor
from audiodiff_core.latents.posteriors import drawn_latents, posterior_moments
from audiodiff_core.mel import to_model
from audiodiff_core.training.draws import Draws, TrainBatch, draws
from audiodiff_core.training.state import TrainState, full_tensor


def train_step(
    accelerator: Accelerator,
    state: TrainState,
    micro_batches: Sequence[TrainBatch],
    rate: float,
    samples: float | None = None,
) -> tuple[float, float]:
    """Take one optimizer step over the micro-batches of this worker.

    Args:
        accelerator: Synchronizes the gradients of all workers.
        state: State of the training. The step updates the weights, their average and `state.step`.
        micro_batches: Samples of this worker, at least one in each micro-batch.
        rate: The learning rate.
        samples: Mean number of samples per worker. None if every worker has the same number of samples.

    Returns:
        The loss, and the norm of the gradient before clipping. The loss is the sum of the losses of this worker's
        samples divided by `samples`. Its mean over the workers is the mean loss of all samples of the step.

    Raises:
        FloatingPointError: In all workers, if the gradient is not finite. The weights do not change. With a gradient
            scaler (fp16), gradients overflow while the scaler searches for its scale. The scaler then skips the
            update of the weights, and the step raises only if the loss is not finite either.
    """
    total_loss = torch.zeros((), device=accelerator.device)
    samples = samples or sum(len(batch.numbers) for batch in micro_batches)
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
    norm = float(full_tensor(accelerator.clip_grad_norm_(state.network.parameters(), state.max_gradient_norm)))
    mean_loss = float(total_loss)
    if not math.isfinite(norm) and (
        accelerator.scaler is None or not math.isfinite(_mean_over_workers(accelerator, mean_loss))
    ):
        state.optimizer.zero_grad()
        raise FloatingPointError(f"gradient norm {norm} at step {state.step} (loss {mean_loss}): lower learning_rate")
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    if math.isfinite(norm):  # otherwise the gradient scaler has skipped the update
        state.ema.update(list(state.network.parameters()))
    state.step += 1
    return mean_loss, norm


def with_draws(state: TrainState, batch: TrainBatch) -> TrainBatch:
    """Return a copy of `batch` with the random draws of its samples.

    A training step makes missing draws itself, but then the GPU waits: the draws of a sample of 256x256 values take
    about a millisecond. A data loader should therefore call this function ahead of time, in another thread. numpy
    releases the GIL during the draws.
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


def on_device(
    accelerator: Accelerator, state: TrainState, batch: TrainBatch, dropout: bool = True
) -> tuple[torch.Tensor, Draws, torch.Tensor | None]:
    """Move a batch to the device of the accelerator. Images are converted from uint8 on the device.

    Args:
        accelerator: The accelerator of the training.
        state: State of the training: seed, objective and VAE.
        batch: Batch on the CPU. Missing draws are made.
        dropout: Whether to set the encodings of samples with dropped conditioning to 0.

    Returns:
        The clean images or latents of shape (batch, channels, height, width), the draws, and the encodings of shape
        (batch, dim) or None for an unconditional network.
    """
    device = accelerator.device
    assert state.conditional == (batch.encodings is not None), (
        "conditional networks need encodings, other networks take none"
    )
    drawn = _draws_to(batch.drawn or with_draws(state, batch).drawn, device)
    if state.vae is None:
        clean = to_model(torch.from_numpy(batch.images).to(device).unsqueeze(1))
    else:
        assert drawn.latent_noise is not None
        clean = drawn_latents(
            _moments(accelerator, state.vae, batch), drawn.latent_noise, state.vae.config.scaling_factor
        )
    encodings = None if batch.encodings is None else torch.from_numpy(batch.encodings).to(device)
    if encodings is not None and dropout:
        encodings = encodings * drawn.kept.unsqueeze(1)
    return clean, drawn, encodings


def _mean_over_workers(accelerator: Accelerator, value: float) -> float:
    mean: torch.Tensor = reduce(torch.tensor(value, device=accelerator.device), reduction="mean")
    return float(mean)


def _moments(accelerator: Accelerator, vae: Any, batch: TrainBatch) -> torch.Tensor:
    """Means and standard deviations (batch, 2, channels, height, width) of the latents, on the device."""
    if batch.latents is not None:
        return torch.from_numpy(batch.latents).to(accelerator.device)
    assert batch.images is not None
    with torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=accelerator.mixed_precision == "bf16"):
        return posterior_moments(vae, batch.images)


def _draws_to(drawn: Draws | None, device: torch.device) -> Draws:
    assert drawn is not None
    latent_noise = None if drawn.latent_noise is None else drawn.latent_noise.to(device)
    return Draws(drawn.timesteps.to(device), drawn.noise.to(device), drawn.kept.to(device), latent_noise)
