"""Random draws of training samples: timesteps, noise, and dropout of the conditioning."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from audiodiff_core.diffusion import seeds as streams
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.mel import Images


@dataclass(frozen=True)
class TrainBatch:
    """Batch of training samples, either images or encoded latents.

    Args:
        numbers: Numbers of the samples, counted from the start of training.
        images: uint8 images of shape (batch, y_res, x_res). None if the batch holds `latents`.
        encodings: Conditioning of shape (batch, dim), for a conditional network only.
        latents: Means and standard deviations of the latents, of shape (batch, 2, channels, height, width). See
            `latents.posteriors`.
        drawn: Random draws of the samples. `with_draws` adds them.
    """

    numbers: Sequence[int]
    images: Images | None
    encodings: npt.NDArray[np.float32] | None = None
    latents: npt.NDArray[np.float32] | None = None
    drawn: "Draws | None" = None

    def split(self, size: int) -> "list[TrainBatch]":
        """Split into parts of at most `size` samples, as equal as possible, in the same order."""
        count = -(-len(self.numbers) // size)
        bounds = [len(self.numbers) * part // count for part in range(count + 1)]
        return [self._rows(slice(first, end)) for first, end in pairwise(bounds)]

    def _rows(self, rows: slice) -> "TrainBatch":
        return TrainBatch(
            self.numbers[rows],
            None if self.images is None else self.images[rows],
            None if self.encodings is None else self.encodings[rows],
            None if self.latents is None else self.latents[rows],
            None if self.drawn is None else self.drawn.rows(rows),
        )


@dataclass(frozen=True)
class Draws:
    """Random draws of a batch of samples.

    Args:
        timesteps: Timesteps of shape (batch,), int64, or float32 for a flow objective.
        noise: Noise ~ N(0, 1) of shape (batch, channels, height, width) that is added to the clean values.
        kept: Mask of shape (batch,), True for samples whose encodings are used, and False for dropped encodings.
        latent_noise: Noise ~ N(0, 1) of the shape of `noise` with which latents are drawn from their mean and
            standard deviation. None if the network is trained on images.
    """

    timesteps: torch.Tensor
    noise: torch.Tensor
    kept: torch.Tensor
    latent_noise: torch.Tensor | None

    def rows(self, rows: slice) -> "Draws":
        """Return the draws of some of the samples."""
        latent_noise = None if self.latent_noise is None else self.latent_noise[rows]
        return Draws(self.timesteps[rows], self.noise[rows], self.kept[rows], latent_noise)


def draws(
    seed: int, numbers: Sequence[int], objective: Objective, shape: tuple[int, ...], latents: bool = False
) -> Draws:
    """Draw the random values of each sample from its own stream, seeded with (seed, sample number).

    Args:
        seed: Seed of the training.
        numbers: Numbers of the samples, counted from the start of training.
        objective: The training objective: distribution of the timesteps, and rate of the conditioning dropout.
        shape: Shape of the noise of one sample: (channels, height, width).
        latents: Whether to draw `latent_noise` too.

    Returns:
        The draws on the CPU.
    """
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
