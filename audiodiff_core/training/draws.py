"""Random draws of training samples, each from the stream of (seed, sample number)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from audiodiff_core import seeds as streams
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.mel import Images


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


def draws(
    seed: int, numbers: Sequence[int], objective: Objective, shape: tuple[int, ...], latents: bool = False
) -> Draws:
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
