"""One optimizer step."""

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
from audiodiff_core.training.state import TrainState, whole_tensor


def train_step(
    accelerator: Accelerator,
    state: TrainState,
    micro_batches: Sequence[TrainBatch],
    rate: float,
    samples: float | None = None,
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
    norm = float(whole_tensor(accelerator.clip_grad_norm_(state.network.parameters(), state.max_gradient_norm)))
    loss = float(total)
    if not math.isfinite(norm) and (
        accelerator.scaler is None or not math.isfinite(_of_all_workers(accelerator, loss))
    ):
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


def on_device(
    accelerator: Accelerator, state: TrainState, batch: TrainBatch, dropout: bool = True
) -> tuple[torch.Tensor, Draws, torch.Tensor | None]:
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
        clean = drawn_latents(
            _moments(accelerator, state.vae, batch), drawn.latent_noise, state.vae.config.scaling_factor
        )
    encodings = None if batch.encodings is None else torch.from_numpy(batch.encodings).to(device)
    if encodings is not None and dropout:
        encodings = encodings * drawn.kept.unsqueeze(1)
    return clean, drawn, encodings


def _of_all_workers(accelerator: Accelerator, value: float) -> float:
    shared: torch.Tensor = reduce(torch.tensor(value, device=accelerator.device), reduction="mean")
    return float(shared)


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
