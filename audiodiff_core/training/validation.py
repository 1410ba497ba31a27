"""The loss on samples held out, by how much noise they bear: what the training loss, an average over all levels, does not tell.

A sample's place on the way to pure noise and its noise belong to its number, so that two validations differ by the weights alone. The
places are spread evenly (the golden ratio's multiples), so that even few samples fill every band.
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
    """Samples' places (batch,) in [0, 1) on the way from image to pure noise."""
    return np.asarray([number * GOLDEN_RATIO % 1 for number in numbers])


@torch.no_grad()
def validation_losses(
    accelerator: Accelerator, state: TrainState, network: Any, batch: TrainBatch
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Places in [0, 1) and mean squared errors, each (batch,), of `network` (the state's, or another with averaged weights) on its objective.

    Conditional networks see every encoding. Numbers are the samples' own in the held-out data, from 0.
    """
    clean, drawn, encodings = on_device(accelerator, state, batch, dropout=False)
    fractions = noise_fractions(batch.numbers)
    timesteps = state.objective.timesteps_at(fractions).to(accelerator.device)
    with accelerator.autocast():
        each = losses(network, state.objective, clean, drawn.noise, timesteps, encodings=encodings)
    return fractions, each.double().cpu().numpy()


def band_means(fractions: npt.NDArray[np.float64], values: npt.NDArray[np.float64], bands: int) -> list[float]:
    """Means of `values` in equal bands of [0, 1), least noise first; NaN where a band is empty."""
    band = np.minimum((fractions * bands).astype(np.int64), bands - 1)
    counts = np.bincount(band, minlength=bands)
    sums = np.bincount(band, weights=values, minlength=bands)
    return [float(total / count) if count else float("nan") for total, count in zip(sums, counts, strict=True)]
