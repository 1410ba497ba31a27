"""Accuracy of the methods on ideal denoisers: exact, or convergent at their order.

Inexact combinations are refused.
"""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from audiodiff_core.diffusion.methods import METHODS, PredictionType, SchedulerName
from audiodiff_core.diffusion.noise_schedule import Schedule
from audiodiff_core.diffusion.schedulers import SCHEDULERS, prediction_type, resolved, scheduler_for
from audiodiff_core.sampling import GenerateRequest
from tests.rare import rare_but

MEAN, DEVIATION = 0.1, 0.3
SPACINGS = ("leading", "linspace", "trailing")
STOCHASTIC: tuple[SchedulerName, ...] = ("ddpm", "dpm++_sde", "euler_a")


def model(
    predicts: PredictionType, zero_terminal_snr: bool = False, spacing: str = "leading", clip: bool = False
) -> Any:
    """Return the scheduler that is saved with a model of the given kind."""
    if predicts == "flow":
        return FlowMatchEulerDiscreteScheduler()
    return DDPMScheduler(
        prediction_type=predicts, rescale_betas_zero_snr=zero_terminal_snr, timestep_spacing=spacing, clip_sample=clip
    )


def offered(*names: SchedulerName, spacings: Sequence[str] = SPACINGS) -> Iterator[Any]:
    """Yield every supported combination of method and model."""
    for name in names or METHODS:
        method = METHODS[name]
        for predicts in sorted(method.predictions):
            if predicts == "flow":
                yield pytest.param(name, model("flow"), id=f"{name}-flow")
                continue
            for zero, spacing in itertools.product((False, True) if method.zero_terminal_snr else (False,), spacings):
                if not (zero and predicts == "epsilon"):
                    yield pytest.param(
                        name,
                        model(predicts, zero, spacing),
                        id=f"{name}-{predicts}-{spacing}{'-zero-snr' if zero else ''}",
                    )


def answer(model_scheduler: Any, noisy: torch.Tensor, timestep: float, deviation: float) -> torch.Tensor:
    """Return the optimal prediction for clean pixels of the distribution N(MEAN, deviation^2).

    The prediction is E[clean | noisy], converted to the prediction type of the model.
    """
    predicts = prediction_type(model_scheduler)
    if predicts == "flow":
        signal, share = 1 - timestep / 1_000, timestep / 1_000
    else:
        sigmas = ((1 - model_scheduler.alphas_cumprod.double()) / model_scheduler.alphas_cumprod.double()).sqrt()
        low = min(int(timestep), len(sigmas) - 2)  # between two levels, methods interpolate sigma
        sigma = (
            float(torch.lerp(sigmas[low], sigmas[low + 1], timestep - low))
            if timestep != int(timestep)
            else float(sigmas[int(timestep)])
        )
        signal, share = (
            (0.0, 1.0) if sigma == float("inf") else (1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5)
        )
    clean = MEAN + signal * deviation**2 / (signal**2 * deviation**2 + share**2) * (noisy - signal * MEAN)
    noise = (noisy - signal * clean) / share
    return {"epsilon": noise, "v_prediction": signal * noise - share * clean, "sample": clean, "flow": noise - clean}[
        predicts
    ]


def sampled(
    model_scheduler: Any, name: SchedulerName, steps: int, deviation: float, eta: float = 0.0, *, pixels: int = 1_000
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample with optimal predictions.

    Returns:
        The sample of the method, and the exact solution of the probability flow for the same noise.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule = Schedule(model_scheduler, GenerateRequest(scheduler=name, steps=steps, eta=eta))
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 1, 1, pixels, generator=generator) * schedule.init_noise_sigma
    schedule.begin(0)
    exact = None
    for call, timestep in enumerate(schedule.timesteps):
        noisy = schedule.network_input(sample, call).double()
        if exact is None:
            signal, share = (
                float(part) / float(sum(part**2 for part in schedule.levels[0]) ** 0.5) for part in schedule.levels[0]
            )
            if prediction_type(model_scheduler) == "flow":
                signal, share = 0.0, 1.0
            exact = MEAN + DEVIATION * (noisy - signal * MEAN) / (signal**2 * DEVIATION**2 + share**2) ** 0.5
        sample = schedule.step(answer(model_scheduler, noisy, timestep, deviation).float(), sample, call, generator)
    assert exact is not None
    return sample, exact


@pytest.mark.parametrize(("name", "model_scheduler"), offered())
def test_a_single_picture_is_recovered_exactly(name: SchedulerName, model_scheduler: Any) -> None:
    sample, _ = sampled(model_scheduler, name, 10, deviation=0.0)
    assert float((sample - MEAN).abs().max()) < 2e-6


@pytest.mark.parametrize(
    ("name", "model_scheduler"), offered(*(name for name in METHODS if name not in STOCHASTIC), spacings=["trailing"])
)
def test_a_gaussian_is_reached_by_the_exact_way_at_the_methods_order(name: SchedulerName, model_scheduler: Any) -> None:
    coarse, fine = (
        float((sample - exact).abs().mean())
        for sample, exact in (sampled(model_scheduler, name, steps, DEVIATION) for steps in (25, 100))
    )
    order = 1 if name in ("ddim", "euler", "flow_euler") else 2
    assert fine < (0.012 if order == 1 else 0.0025)
    assert coarse / fine > (3.4 if order == 1 else 7)


@pytest.mark.parametrize(("name", "model_scheduler"), offered(*STOCHASTIC, spacings=["trailing"]))
def test_a_gaussian_keeps_its_mean_and_deviation(name: SchedulerName, model_scheduler: Any) -> None:
    sample, _ = sampled(model_scheduler, name, 100, DEVIATION, pixels=20_000)
    assert float(sample.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(sample.std()) == pytest.approx(DEVIATION, abs=0.01 if name == "dpm++_sde" else 0.035)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_eta_keeps_mean_and_deviation(eta: float) -> None:
    sample, exact = sampled(model("v_prediction", True, "trailing"), "ddim", 100, DEVIATION, eta, pixels=20_000)
    assert float(sample.std()) == pytest.approx(DEVIATION, abs=0.035)
    assert float((sample - exact).abs().mean()) > 0.05


def test_all_names_and_their_default_steps() -> None:
    assert {name: method.default_steps for name, method in METHODS.items()} == {
        "ddim": 50,
        "ddpm": 1_000,
        "dpm++": 25,
        "dpm++_sde": 50,
        "unipc": 25,
        "euler": 50,
        "euler_a": 50,
        "heun": 25,
        "flow_euler": 15,
        "flow_heun": 25,
    }
    assert {name: method.scheduler for name, method in METHODS.items()} == SCHEDULERS


def test_models_of_zero_terminal_snr_need_fewer_steps() -> None:
    saved = model("v_prediction", True, "trailing")
    for name, method in METHODS.items():
        if method.zero_terminal_snr and "v_prediction" in method.predictions:
            assert resolved(saved, GenerateRequest(scheduler=name)) == (name, 15)
    assert resolved(saved, GenerateRequest(steps=50)) == ("ddim", 50)
    assert resolved(model("v_prediction"), GenerateRequest()) == ("ddim", 50)


@pytest.mark.parametrize(("predicts", "expected"), [("epsilon", ("ddim", 50)), ("flow", ("flow_euler", 15))])
def test_defaults_are_those_of_the_model(predicts: PredictionType, expected: tuple[str, int]) -> None:
    assert resolved(model(predicts), GenerateRequest()) == expected
    assert resolved(model(predicts), GenerateRequest(steps=7)) == (expected[0], 7)


def test_flow_models_are_known_by_their_scheduler() -> None:
    assert prediction_type(FlowMatchHeunDiscreteScheduler()) == "flow"
    assert prediction_type(DDIMScheduler(prediction_type="sample")) == "sample"
    with pytest.raises(ValueError, match="prediction_type x0 of the model is not known"):
        prediction_type(DDIMScheduler(prediction_type="x0"))


@pytest.mark.parametrize(
    ("model_scheduler", "values", "message"),
    [
        (
            model("flow"),
            {"scheduler": "ddim"},
            r"scheduler ddim does not fit a model with prediction_type flow: use one of flow_euler, flow_heun",
        ),
        (
            model("epsilon"),
            {"scheduler": "flow_euler"},
            "scheduler flow_euler does not fit a model with prediction_type epsilon: use one of ddim, ddpm",
        ),
        (
            model("sample"),
            {"scheduler": "euler_a"},
            "scheduler euler_a does not fit a model with prediction_type sample",
        ),
        (
            model("v_prediction", True),
            {"scheduler": "heun"},
            "scheduler heun does not support the model.s zero terminal SNR",
        ),
        (model("epsilon"), {"scheduler": "euler", "eta": 0.5}, "eta 0.5: scheduler euler has no eta"),
        (model("epsilon"), {"scheduler": "dpm++", "steps": 1_000}, "steps 1000: dpm"),
        (
            DDPMScheduler(num_train_timesteps=20),
            {"steps": 21},
            "steps 21: the model has 20 levels of noise, use 1 to 20",
        ),
    ],
)
def test_what_is_not_exact_is_refused_by_name(model_scheduler: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler_for(model_scheduler, GenerateRequest(**values))


def test_every_setting_of_the_model_is_handed_on() -> None:
    """Check that every method keeps the settings of the model.

    The betas equal the defaults of the model's class. diffusers' from_config would therefore give Heun other betas.
    """
    saved = model("v_prediction", spacing="trailing", clip=True)
    for name, method in METHODS.items():
        if "v_prediction" in method.predictions:
            scheduler = scheduler_for(saved, GenerateRequest(scheduler=name, steps=5))
            assert scheduler.alphas_cumprod.equal(saved.alphas_cumprod), name
            assert (scheduler.config.timestep_spacing, scheduler.config.prediction_type) == (
                "trailing",
                "v_prediction",
            ), name
    assert scheduler_for(saved, GenerateRequest(steps=5)).config.clip_sample is True


def test_schedulers_are_not_shared() -> None:
    saved = model("epsilon")
    one, other = (scheduler_for(saved, GenerateRequest()) for _ in range(2))
    assert one is not other
    assert one is not saved


def test_a_step_count_that_starts_below_noise_warns() -> None:
    warning = Schedule(model("epsilon"), GenerateRequest(steps=2)).warning
    assert warning is not None
    assert warning.startswith("steps 2 with ddim: sampling starts from noise at level 500 of 1000")
    saved = model("v_prediction", True, "trailing")
    for steps in (1, 7, 10, 50, 100, 500, 600, 1_000):
        assert Schedule(saved, GenerateRequest(steps=steps)).warning is None


@pytest.mark.parametrize(("steps", "divisor"), [(30, 25), (60, 50), (300, 250), (400, 250), (700, 500)])
def test_ddim_is_exact_for_steps_that_do_not_divide_the_levels(steps: int, divisor: int) -> None:
    more, fewer = (
        sampled(model("v_prediction", True, "trailing"), "ddim", number, DEVIATION) for number in (steps, divisor)
    )
    assert float((more[0] - more[1]).abs().mean()) < float((fewer[0] - fewer[1]).abs().mean())


def test_ddim_by_even_steps_is_diffusers_own() -> None:
    saved = model("v_prediction", True, "trailing")
    schedule, theirs = Schedule(saved, GenerateRequest(steps=20, eta=0.5)), DDIMScheduler.from_config(saved.config)
    theirs.set_timesteps(20)
    ours = sample = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    one, other = (torch.Generator().manual_seed(1) for _ in range(2))
    for call, timestep in enumerate(theirs.timesteps):
        ours = schedule.step(ours.sin(), ours, call, one)
        sample = theirs.step(sample.sin(), timestep, sample, eta=0.5, generator=other).prev_sample
    assert torch.equal(ours, sample)


@pytest.mark.parametrize("steps", [3, 6, 8, 10, 15, 21, 30, 40])
def test_ddim_with_the_largest_eta_starts_from_pure_noise(steps: int) -> None:
    sample, _ = sampled(model("v_prediction", True, "trailing"), "ddim", steps, DEVIATION, eta=1.0, pixels=20_000)
    assert float(sample.mean()) == pytest.approx(MEAN, abs=0.02)
    assert 0.15 * DEVIATION < float(sample.std()) < 1.1 * DEVIATION


@pytest.mark.parametrize(
    "name",
    rare_but(
        ("ddim", "dpm++"),
        [name for name, method in METHODS.items() if method.zero_terminal_snr and "v_prediction" in method.predictions],
    ),
)
def test_many_steps_from_pure_noise(name: SchedulerName) -> None:
    """Check many steps: diffusers limits the sigma of pure noise to less than the sigma of the next step."""
    sample, _ = sampled(model("v_prediction", True, "trailing"), name, 500, DEVIATION, pixels=20_000)
    assert float(sample.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(sample.std()) == pytest.approx(DEVIATION, rel=0.06)


def test_the_default_steps_are_at_most_the_models_levels() -> None:
    assert resolved(DDPMScheduler(num_train_timesteps=20), GenerateRequest()) == ("ddim", 20)


@pytest.mark.parametrize(
    ("name", "model_scheduler"), [(name, model("flow" if name.startswith("flow") else "epsilon")) for name in METHODS]
)
def test_levels_fall_to_the_clean_image_and_steps_are_counted_in_calls(
    name: SchedulerName, model_scheduler: Any
) -> None:
    schedule = Schedule(model_scheduler, GenerateRequest(scheduler=name, steps=6))
    doubled = METHODS[name].calls_per_step == 2
    assert schedule.calls == (11 if doubled else 6)
    ratios = [float(share / signal) if signal > 0 else float("inf") for signal, share in schedule.levels]
    assert ratios == sorted(ratios, reverse=True)
    assert tuple(map(float, schedule.levels[-1])) == (1, 0)
    assert [schedule.begin(step) for step in (0, 1, 5)] == ([0, 2, 10] if doubled else [0, 1, 5])
    for step in (-1, 6):
        with pytest.raises(ValueError, match=f"start_step {step}: there are 6 steps, use 0 to 5"):
            schedule.begin(step)
