"""Targets and weights against their formulas."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from audiodiff_core.diffusion.methods import PredictionType
from audiodiff_core.diffusion.objectives import Objective, SavedScheduler, losses, scales, target, weights

OBJECTIVES = [
    Objective(prediction_type="epsilon", zero_terminal_snr=False),
    Objective(prediction_type="v_prediction", zero_terminal_snr=False),
    Objective(prediction_type="v_prediction", zero_terminal_snr=True),
    Objective(prediction_type="sample", zero_terminal_snr=False),
    Objective(prediction_type="sample", zero_terminal_snr=True),
]


class IdealDenoiser(torch.nn.Module):
    """A denoiser that knows the clean picture (height, width).

    Its predictions are exact for every noisy picture, in the prediction type of `scheduler`.
    """

    def __init__(self, clean: torch.Tensor, scheduler: Any) -> None:
        super().__init__()
        self.clean = clean
        self.scheduler = scheduler
        self.config = SimpleNamespace(in_channels=1, out_channels=1, sample_size=list(clean.shape))

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        signal = self.scheduler.alphas_cumprod[timesteps].double().reshape(-1, 1, 1, 1)
        clean = self.clean.double().expand_as(noisy)
        noise = (noisy - signal.sqrt() * clean) / (1 - signal).sqrt()
        answers = {
            "epsilon": noise,
            "v_prediction": signal.sqrt() * noise - (1 - signal).sqrt() * clean,
            "sample": clean,
        }
        return (answers[self.scheduler.config.prediction_type].float(),)


def name_of(objective: Objective) -> str:
    return f"{objective.prediction_type}{'-zero-snr' if objective.zero_terminal_snr else ''}"


def test_epsilon_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon cannot have zero_terminal_snr.*use v_prediction"):
        Objective(prediction_type="epsilon", zero_terminal_snr=True)
    assert not Objective(prediction_type="epsilon").zero_terminal_snr
    assert Objective(prediction_type="v_prediction").zero_terminal_snr


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=name_of)
def test_scheduler_carries_the_objective(objective: Objective, name: SavedScheduler) -> None:
    config = objective.scheduler(name).config
    assert config.prediction_type == objective.prediction_type
    assert config.rescale_betas_zero_snr == objective.zero_terminal_snr
    assert config.timestep_spacing == ("trailing" if objective.zero_terminal_snr else "leading")
    assert (config.num_train_timesteps, config.beta_schedule, config.beta_start, config.beta_end) == (
        1_000,
        "linear",
        0.0001,
        0.02,
    )
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
    expected = {"epsilon": noise, "sample": clean, "v_prediction": level.sqrt() * noise - (1 - level).sqrt() * clean}[
        objective.prediction_type
    ]
    torch.testing.assert_close(target(objective, clean, noise, timesteps), expected, atol=1e-5, rtol=1e-5)
    of_clean, of_noise = (scale.reshape(-1, 1, 1, 1) for scale in scales(objective, timesteps))
    torch.testing.assert_close(
        of_clean * clean + of_noise * noise, scheduler.add_noise(clean, noise, timesteps), atol=1e-6, rtol=1e-6
    )


def test_flow_by_hand() -> None:
    flow = Objective(prediction_type="flow")
    clean, noise = torch.full((2, 1, 2, 2), -0.5), torch.full((2, 1, 2, 2), 2.0)
    times = torch.tensor([250.0, 900.0])
    seen: list[torch.Tensor] = []

    def network(noisy: torch.Tensor, timesteps: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        seen.extend([noisy, timesteps])
        return (torch.tensor([2.5, 1.0]).reshape(2, 1, 1, 1).expand_as(noisy),)

    assert target(flow, clean, noise, times).unique().tolist() == [2.5]
    assert losses(network, flow, clean, noise, times).tolist() == pytest.approx([0, 2.25])
    assert seen[0][:, 0, 0, 0].tolist() == pytest.approx([0.75 * -0.5 + 0.25 * 2, 0.1 * -0.5 + 0.9 * 2])
    assert seen[1].tolist() == [250, 900]


def test_flow_of_an_ideal_network_arrives_by_euler_steps() -> None:
    flow = Objective(prediction_type="flow")
    clean, sample = (
        torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4),
        torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
    )
    scheduler = flow.scheduler()
    scheduler.set_timesteps(7)
    for timestep in scheduler.timesteps:
        sigma = scales(flow, timestep.reshape(1))[1]
        sample = scheduler.step((sample - clean) / sigma, timestep, sample, return_dict=False)[
            0
        ]  # x_t - x0 = sigma * (noise - x0)
    torch.testing.assert_close(sample, clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "field",
    [{"zero_terminal_snr": False}, {"beta_schedule": "scaled_linear"}, {"clip_sample": True}, {"min_snr_gamma": 5.0}],
)
def test_what_a_flow_has_not_is_refused(field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(ValueError, match=f"flow cannot have {name}"):
        Objective(prediction_type="flow", **field)


def test_min_snr_weights_by_hand() -> None:
    timesteps = torch.tensor([0, 100, 400, 700, 999])
    signal = np.cumprod(1 - np.linspace(0.0001, 0.02, 1_000))[timesteps.numpy()]
    snr = signal / (1 - signal)
    assert snr[1] > 5 > snr[2]
    for prediction_type, over in {"epsilon": snr, "v_prediction": snr + 1, "sample": np.ones(5)}.items():
        objective = Objective.model_validate(
            {"prediction_type": prediction_type, "zero_terminal_snr": False, "min_snr_gamma": 5}
        )
        assert weights(objective, timesteps).tolist() == pytest.approx(
            (np.minimum(snr, 5) / over).tolist(), rel=2e-3
        ), prediction_type
    assert weights(Objective(), timesteps).tolist() == [1] * 5


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_min_snr_weights_do_not_forget_pure_noise(prediction_type: PredictionType) -> None:
    given = weights(Objective(prediction_type=prediction_type, min_snr_gamma=5.0), torch.arange(1_000))
    assert given.isfinite().all()
    assert float(given[999]) == pytest.approx(1)
    assert float(given.max()) <= 5
    assert float(given.min()) >= (1 if prediction_type == "sample" else 0)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=name_of)
def test_an_objective_is_found_again_in_its_scheduler(objective: Objective, beta_schedule: str) -> None:
    objective = Objective.model_validate(
        {**objective.model_dump(), "beta_schedule": beta_schedule, "beta_start": 0.00085, "clip_sample": False}
    )
    for name in ("ddim", "ddpm"):
        assert Objective.of(objective.scheduler(name)) == objective
    assert objective.scheduler("ddim").config.beta_schedule == beta_schedule
    assert objective.scheduler("ddim").config.clip_sample is False


def test_a_flow_is_found_again_and_has_its_own_scheduler() -> None:
    flow = Objective(prediction_type="flow")
    assert Objective.of(flow.scheduler()) == flow
    assert type(flow.scheduler()).__name__ == "FlowMatchEulerDiscreteScheduler"
    with pytest.raises(ValueError, match="scheduler ddim does not fit prediction_type flow: use flow_euler"):
        flow.scheduler("ddim")
    with pytest.raises(
        ValueError, match="scheduler flow_euler does not fit prediction_type v_prediction: use ddim or ddpm"
    ):
        Objective().scheduler("flow_euler")


def test_a_noise_schedule_that_is_not_known_is_named() -> None:
    with pytest.raises(ValueError, match="beta_schedule sigmoid of the model's DDPMScheduler"):
        Objective.of(DDPMScheduler(beta_schedule="sigmoid"))


def test_encodings_reach_the_network_as_a_sequence_of_one() -> None:
    seen: list[torch.Tensor] = []

    def network(
        noisy: torch.Tensor, timesteps: torch.Tensor, encoder_hidden_states: torch.Tensor, return_dict: bool
    ) -> tuple[torch.Tensor]:
        seen.append(encoder_hidden_states)
        return (noisy,)

    encodings = torch.randn(3, 10)
    losses(
        network,
        Objective(),
        torch.zeros(3, 1, 4, 4),
        torch.zeros(3, 1, 4, 4),
        torch.zeros(3, dtype=torch.int64),
        encodings=encodings,
    )
    assert torch.equal(seen[0], encodings.reshape(3, 1, 10))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=name_of)
def test_loss_is_zero_for_an_ideal_denoiser_and_one_for_an_ignorant_one(objective: Objective) -> None:
    scheduler = objective.scheduler("ddpm")
    clean = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
    noise = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([20, 300, 700, 999])
    ideal = IdealDenoiser(clean, scheduler)
    batch = clean.expand(4, 1, 64, 64)
    assert float(losses(ideal, objective, batch, noise, timesteps).max()) < 1e-5

    def ignorant(noisy: torch.Tensor, timesteps: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (torch.zeros_like(noisy),)

    expected = target(objective, batch, noise, timesteps).square().mean(dim=(1, 2, 3))
    assert losses(ignorant, objective, batch, noise, timesteps).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("settings", [{"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_a_flow_with_a_shift_is_not_trained_on(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"shift \d\.0 of the .* would be lost"):
        Objective.of(FlowMatchEulerDiscreteScheduler(**settings))
