"""Targets are what the formulas say."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from audiodiff_core.objectives import Objective, PredictionType, SavedScheduler, loss, target

OBJECTIVES = [
    Objective(prediction_type="epsilon", zero_terminal_snr=False),
    Objective(prediction_type="v_prediction", zero_terminal_snr=False),
    Objective(prediction_type="v_prediction", zero_terminal_snr=True),
    Objective(prediction_type="sample", zero_terminal_snr=False),
    Objective(prediction_type="sample", zero_terminal_snr=True),
]


class IdealDenoiser(torch.nn.Module):
    """Knows the clean picture (height, width) and answers for any noisy one exactly as `scheduler`'s prediction type asks."""

    def __init__(self, clean: torch.Tensor, scheduler: Any) -> None:
        super().__init__()
        self.clean = clean
        self.scheduler = scheduler
        self.config = SimpleNamespace(in_channels=1, sample_size=list(clean.shape))

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        signal = self.scheduler.alphas_cumprod[timesteps].double().reshape(-1, 1, 1, 1)
        clean = self.clean.double().expand_as(noisy)
        noise = (noisy - signal.sqrt() * clean) / (1 - signal).sqrt()
        answers = {"epsilon": noise, "v_prediction": signal.sqrt() * noise - (1 - signal).sqrt() * clean, "sample": clean}
        return (answers[self.scheduler.config.prediction_type].float(),)


def name_of(objective: Objective) -> str:
    return f"{objective.prediction_type}{'-zero-snr' if objective.zero_terminal_snr else ''}"


def test_epsilon_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon cannot have zero_terminal_snr.*use v_prediction"):
        Objective(prediction_type="epsilon", zero_terminal_snr=True)
    with pytest.raises(ValueError, match="epsilon"):
        Objective(prediction_type="epsilon")


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=name_of)
def test_scheduler_carries_the_objective(objective: Objective, name: SavedScheduler) -> None:
    config = objective.scheduler(name).config
    assert config.prediction_type == objective.prediction_type
    assert config.rescale_betas_zero_snr == objective.zero_terminal_snr
    assert config.timestep_spacing == ("trailing" if objective.zero_terminal_snr else "leading")
    assert (config.num_train_timesteps, config.beta_schedule, config.beta_start, config.beta_end) == (1_000, "linear", 0.0001, 0.02)
    assert config.clip_sample is True


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    assert Objective().scheduler("ddpm").alphas_cumprod[-1] == pytest.approx(0, abs=1e-7)
    assert Objective(zero_terminal_snr=False).scheduler("ddpm").alphas_cumprod[-1] > 1e-5


@pytest.mark.parametrize("objective", OBJECTIVES, ids=name_of)
def test_target_by_hand(objective: Objective) -> None:
    scheduler = objective.scheduler("ddpm")
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.rand(3, 1, 4, 5, generator=generator) * 2 - 1, torch.randn(3, 1, 4, 5, generator=generator)
    timesteps = torch.tensor([0, 500, 999])
    betas = np.linspace(0.0001, 0.02, 1_000)
    signal = np.cumprod(1 - betas)
    if objective.zero_terminal_snr:  # Lin et al. 2023, algorithm 1
        root = np.sqrt(signal)
        signal = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    level = torch.from_numpy(signal)[timesteps].float().reshape(-1, 1, 1, 1)
    expected = {"epsilon": noise, "sample": clean, "v_prediction": level.sqrt() * noise - (1 - level).sqrt() * clean}[objective.prediction_type]
    torch.testing.assert_close(target(scheduler, clean, noise, timesteps), expected, atol=1e-5, rtol=1e-5)


def test_unknown_prediction_type_is_named() -> None:
    scheduler = SimpleNamespace(config=SimpleNamespace(prediction_type="flow"))
    with pytest.raises(ValueError, match="flow"):
        target(scheduler, torch.zeros(1), torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=name_of)
def test_loss_is_zero_for_an_ideal_denoiser_and_one_for_an_ignorant_one(objective: Objective) -> None:
    scheduler = objective.scheduler("ddpm")
    clean = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
    noise = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([20, 300, 700, 999])
    ideal = IdealDenoiser(clean, scheduler)
    batch = clean.expand(4, 1, 64, 64)
    assert float(loss(ideal, scheduler, batch, noise, timesteps)) < 1e-6

    def ignorant(noisy: torch.Tensor, timesteps: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (torch.zeros_like(noisy),)

    expected = target(scheduler, batch, noise, timesteps).square().mean()
    assert float(loss(ignorant, scheduler, batch, noise, timesteps)) == pytest.approx(float(expected), rel=1e-5)


def test_prediction_types_are_those_that_schedulers_know() -> None:
    kinds: list[PredictionType] = ["epsilon", "v_prediction", "sample"]
    assert {objective.prediction_type for objective in OBJECTIVES} == set(kinds)
