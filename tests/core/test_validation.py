"""Validation: the same samples at the same noise in every run, averaged in bands of noise."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from audiodiff_core.diffusion.objectives import Objective, losses
from audiodiff_core.mel import to_model
from audiodiff_core.training import TrainBatch, TrainState, draws
from audiodiff_core.training.validation import band_means, noise_fractions, validation_losses

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8))
NUMBERS = torch.arange(6)


def test_even_few_samples_fill_every_band() -> None:
    for count in (8, 20, 100):
        bands = np.bincount((noise_fractions(range(count)) * 4).astype(int), minlength=4)
        assert bands.min() >= math.floor(count / 4) - 1
        assert bands.max() <= math.ceil(count / 4) + 2


@pytest.mark.parametrize("prediction_type", ["v_prediction", "flow"])
def test_losses_belong_to_the_samples(make_unet: Callable[[int], Any], prediction_type: Any) -> None:
    accelerator, objective = Accelerator(cpu=True), Objective(prediction_type=prediction_type, min_snr_gamma=None)
    state, network = TrainState(accelerator, make_unet(0), objective, 1e-3, seed=0), make_unet(1)
    batch = TrainBatch(NUMBERS, IMAGES)
    fractions, values = validation_losses(accelerator, state, network, batch)
    parts = [validation_losses(accelerator, state, network, part) for part in batch.split(1)]
    assert (
        np.concatenate([part[0] for part in parts]).tolist() == fractions.tolist() == noise_fractions(range(6)).tolist()
    )
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), values, rtol=1e-5)

    noise = draws(0, NUMBERS, objective, (1, 16, 16), device="cpu").noise
    times = torch.from_numpy(fractions * 1_000)
    with torch.no_grad():
        clean = to_model(IMAGES).unsqueeze(1)
        expected = losses(
            network, objective, clean, noise, times.float() if prediction_type == "flow" else times.long()
        )
    np.testing.assert_allclose(values, expected.numpy(), rtol=1e-5)


def test_bands_by_hand() -> None:
    means = band_means(np.array([0.0, 0.1, 0.3, 0.99]), np.array([1.0, 3.0, 5.0, 7.0]), 4)
    assert means[:2] == [2.0, 5.0]
    assert math.isnan(means[2])
    assert means[3] == 7.0
