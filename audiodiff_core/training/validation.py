"""Validation loss on held-out samples, separately for bands of noise levels.

The training loss is an average over all noise levels, which hides differences between levels. The noise level and the
noise of a validation sample are functions of its number, so that two validations differ in the weights only. The noise
levels are multiples of the golden ratio modulo 1. These multiples are evenly distributed, so that even a few samples
fill every band.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator

from audiodiff_core.diffusion.objectives import losses
from audiodiff_core.training.draws import TrainBatch
from audiodiff_core.training.state import TrainState
from audiodiff_core.training.step import on_device

GOLDEN_RATIO = (1 + 5**0.5) / 2


def noise_fractions(numbers: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the noise levels of samples by their numbers.

    Returns:
        Array of shape (batch,) in [0, 1): 0 is the clean image, 1 is pure noise.
    """
    return np.asarray([number * GOLDEN_RATIO % 1 for number in numbers])


@torch.no_grad()
def validation_losses(
    accelerator: Accelerator, state: TrainState, network: Any, batch: TrainBatch
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Compute the loss of each sample of a batch, without conditioning dropout.

    Args:
        accelerator: The accelerator of the training.
        state: State of the training: objective, seed and VAE.
        network: Network to validate: the network of `state`, or a copy with averaged weights.
        batch: Validation samples, numbered from 0 in the held-out data.

    Returns:
        Noise levels in [0, 1) and mean squared errors, both of shape (batch,).
    """
    clean, drawn, encodings = on_device(accelerator, state, batch, dropout=False)
    fractions = noise_fractions(batch.numbers.tolist())
    timesteps = state.objective.timesteps_at(fractions).to(accelerator.device)
    with accelerator.autocast():
        values = losses(network, state.objective, clean, drawn.noise, timesteps, encodings=encodings)
    return fractions, values.double().cpu().numpy()


def band_means(fractions: npt.NDArray[np.float64], values: npt.NDArray[np.float64], bands: int) -> list[float]:
    """Average `values` over equal bands of noise levels.

    Args:
        fractions: Noise levels in [0, 1), of shape (n,).
        values: Losses of shape (n,).
        bands: Number of bands.

    Returns:
        The mean of each band, lowest noise level first. NaN for an empty band.
    """
    band = np.minimum((fractions * bands).astype(np.int64), bands - 1)
    counts = np.bincount(band, minlength=bands)
    sums = np.bincount(band, weights=values, minlength=bands)
    return [float(total / count) if count else float("nan") for total, count in zip(sums, counts, strict=True)]
