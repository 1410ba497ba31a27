"""A training step: noise by sample number, a falling loss, an average kept apart, and no step on a gradient that is not finite."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from audiodiff_core.objectives import Objective
from audiodiff_core.training import TrainBatch, TrainState, learning_rate, noise_and_timesteps, train_step

Weights = dict[str, torch.Tensor]
MakeState = Callable[..., TrainState]


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def make_state(accelerator: Accelerator, make_unet: Callable[[int], Any]) -> MakeState:
    def build(rate: float = 2e-3) -> TrainState:
        return TrainState(accelerator, make_unet(0), Objective().scheduler("ddpm"), rate, seed=0)

    return build


def batch_of(numbers: range) -> TrainBatch:
    """Pictures that depend on the sample's number alone."""
    band, frame = np.mgrid[0:16, 0:16]
    pictures = [(127 + 120 * np.sin((band + number) / 3) * np.cos(frame / 4)).astype(np.uint8) for number in numbers]
    return TrainBatch(numbers, np.stack(pictures))


def copied(weights: Any) -> Weights:
    return {name: weight.detach().clone() for name, weight in weights.items()}


def test_noise_depends_only_on_seed_and_number() -> None:
    noise, timesteps = noise_and_timesteps(5, batch_of(range(100, 108)), 1_000)
    assert (noise.shape, noise.dtype) == ((8, 1, 16, 16), torch.float32)
    assert (timesteps.shape, timesteps.dtype) == ((8,), torch.int64)
    for row, number in enumerate(range(100, 108)):
        alone, alone_at = noise_and_timesteps(5, batch_of(range(number, number + 1)), 1_000)
        assert torch.equal(alone[0], noise[row])
        assert alone_at[0] == timesteps[row]
    other, other_at = noise_and_timesteps(6, batch_of(range(100, 108)), 1_000)
    assert not torch.equal(other, noise)
    assert not torch.equal(other_at, timesteps)


def test_noise_is_normal_and_timesteps_cover_all_levels() -> None:
    noise, timesteps = noise_and_timesteps(0, TrainBatch(range(2_000), np.zeros((2_000, 8, 8), np.uint8)), 10)
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert np.bincount(timesteps.numpy(), minlength=10).tolist() == pytest.approx([200] * 10, abs=60)
    assert len(noise.flatten(1).unique(dim=0)) == 2_000


def test_loss_falls_on_one_batch(accelerator: Accelerator, make_state: MakeState) -> None:
    state, batch = make_state(), batch_of(range(8))
    losses = [train_step(accelerator, state, [batch], 2e-3)[0] for _ in range(25)]
    assert losses[-1] < 0.7 * losses[0]
    assert state.step == 25


def test_the_same_steps_give_the_same_weights(accelerator: Accelerator, make_state: MakeState) -> None:
    ends = []
    for _ in range(2):
        state = make_state()
        for step in range(3):
            train_step(accelerator, state, [batch_of(range(4 * step, 4 * step + 4))], 1e-3)
        ends.append(copied(state.bare.state_dict()))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_rate_is_the_one_given(accelerator: Accelerator, make_state: MakeState) -> None:
    state = make_state()
    before = copied(state.bare.state_dict())
    train_step(accelerator, state, [batch_of(range(4))], 0.0)
    assert all(torch.equal(weight, before[name]) for name, weight in state.bare.state_dict().items())
    train_step(accelerator, state, [batch_of(range(4))], 1e-3)
    assert not any(torch.equal(weight, before[name]) for name, weight in state.bare.named_parameters() if "conv" in name and "weight" in name)


def test_average_is_kept_apart_from_the_live_weights(accelerator: Accelerator, make_state: MakeState) -> None:
    state = make_state()
    for _ in range(5):
        train_step(accelerator, state, [batch_of(range(4))], 2e-3)
    live = copied(state.bare.state_dict())
    averaged = state.ema_state_dict()
    assert averaged.keys() == live.keys()
    assert not torch.equal(averaged["conv_in.weight"], live["conv_in.weight"])
    assert all(torch.equal(weight, live[name]) for name, weight in state.bare.state_dict().items())


def test_average_lies_between_the_weights_that_it_averages(accelerator: Accelerator, make_state: MakeState) -> None:
    state = make_state()
    seen = [copied(state.bare.state_dict())["conv_in.weight"]]
    for _ in range(6):
        train_step(accelerator, state, [batch_of(range(4))], 2e-3)
        seen.append(copied(state.bare.state_dict())["conv_in.weight"])
    average = state.ema_state_dict()["conv_in.weight"]
    path = torch.stack(seen)
    assert (average >= path.min(dim=0).values - 1e-6).all()
    assert (average <= path.max(dim=0).values + 1e-6).all()
    assert not torch.equal(average, seen[0])


def test_average_goes_round(accelerator: Accelerator, make_state: MakeState) -> None:
    state, fresh = make_state(), make_state()
    for _ in range(3):
        train_step(accelerator, state, [batch_of(range(4))], 2e-3)
    saved = copied(state.ema_state_dict())
    fresh_live = copied(fresh.bare.state_dict())
    fresh.load_ema_state_dict(saved)
    assert all(torch.equal(weight, saved[name]) for name, weight in fresh.ema_state_dict().items())
    assert all(torch.equal(weight, fresh_live[name]) for name, weight in fresh.bare.state_dict().items())


def test_two_halves_are_one_whole_batch(accelerator: Accelerator, make_state: MakeState) -> None:
    results = []
    for micro_batches in ([batch_of(range(8))], [batch_of(range(4)), batch_of(range(4, 8))]):
        state = make_state()
        gradients: list[torch.Tensor] = []
        optimizer = state.optimizer.optimizer

        def keep(*_: Any, kept: list[torch.Tensor] = gradients, seen: TrainState = state) -> None:
            kept.extend(parameter.grad.clone() for parameter in seen.bare.parameters())

        optimizer.register_step_pre_hook(keep)
        results.append((*train_step(accelerator, state, micro_batches, 1e-3), gradients))
    (loss, norm, whole), (loss_of_halves, norm_of_halves, halves) = results
    assert loss_of_halves == pytest.approx(loss, abs=1e-6)
    assert norm_of_halves == pytest.approx(norm, rel=1e-5)
    assert len(whole) > 10
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in whole)
    for one, other in zip(whole, halves, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_gradient_is_clipped_to_norm_one(accelerator: Accelerator, make_state: MakeState) -> None:
    state = make_state()
    with torch.no_grad():
        state.bare.conv_out.weight.mul_(1e3)
    norms: list[float] = []

    def keep(*_: Any) -> None:
        norms.append(float(torch.stack([parameter.grad.norm() for parameter in state.bare.parameters()]).norm()))

    state.optimizer.optimizer.register_step_pre_hook(keep)
    _, norm = train_step(accelerator, state, [batch_of(range(4))], 1e-3)
    assert norm > 10
    assert norms == pytest.approx([1.0], rel=1e-3)


def test_a_gradient_that_is_not_finite_changes_nothing(accelerator: Accelerator, make_state: MakeState) -> None:
    state, twin = make_state(), make_state()
    for each in (state, twin):
        train_step(accelerator, each, [batch_of(range(4))], 1e-3)
    before, average = copied(state.bare.state_dict()), copied(state.ema_state_dict())
    broken = state.bare.conv_in.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="gradient norm nan at step 1"):
        train_step(accelerator, state, [batch_of(range(4))], 1e-3)
    assert all(torch.equal(weight, before[name]) for name, weight in state.bare.state_dict().items())
    assert all(torch.equal(weight, average[name]) for name, weight in state.ema_state_dict().items())
    assert state.step == 1
    broken.remove()
    for each in (state, twin):  # the spoilt gradient is forgotten
        train_step(accelerator, each, [batch_of(range(4))], 1e-3)
    assert all(torch.equal(weight, twin.bare.state_dict()[name]) for name, weight in state.bare.state_dict().items())


def test_a_gradient_that_overflows_lowers_the_scale_and_changes_no_weights(make_unet: Callable[[int], Any]) -> None:
    scaling = Accelerator(cpu=True)
    scaling.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-126)
    unet = make_unet(0)
    with torch.no_grad():
        unet.conv_out.weight.mul_(1e3)
    state = TrainState(scaling, unet, Objective().scheduler("ddpm"), 2e-3, seed=0)
    before, average = copied(state.bare.state_dict()), copied(state.ema_state_dict())
    _, norm = train_step(scaling, state, [batch_of(range(4))], 1e-3)
    assert not math.isfinite(norm)
    assert all(torch.equal(weight, before[name]) for name, weight in state.bare.state_dict().items())
    assert all(torch.equal(weight, average[name]) for name, weight in state.ema_state_dict().items())
    assert scaling.scaler.get_scale() == 1.0
    other = Accelerator(cpu=True)
    other.scaler = torch.amp.GradScaler("cpu")
    TrainState(other, make_unet(0), Objective().scheduler("ddpm"), 2e-3, seed=0).load_progress(json.loads(json.dumps(state.progress())))
    assert other.scaler.get_scale() == 1.0
    _, norm = train_step(scaling, state, [batch_of(range(4))], 1e-3)
    assert math.isfinite(norm)
    assert not torch.equal(state.bare.conv_in.weight, before["conv_in.weight"])


def test_a_loss_that_is_not_finite_raises_with_a_scaler_too(make_unet: Callable[[int], Any]) -> None:
    scaling = Accelerator(cpu=True)
    scaling.scaler = torch.amp.GradScaler("cpu")
    state = TrainState(scaling, make_unet(0), Objective().scheduler("ddpm"), 2e-3, seed=0)
    with torch.no_grad():
        state.bare.conv_out.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="at step 0"):
        train_step(scaling, state, [batch_of(range(4))], 1e-3)


def test_learning_rate_warms_up_then_follows_a_cosine() -> None:
    assert [learning_rate(1e-3, step, 4, 0.0) for step in (0, 1, 3, 4, 100)] == pytest.approx([0.25e-3, 0.5e-3, 1e-3, 1e-3, 1e-3])
    cosine = [learning_rate(1e-3, 1_000, 4, progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0, 1.3)]
    assert cosine == pytest.approx([1e-3, 0.860_87e-3, 0.525e-3, 0.189_13e-3, 0.05e-3, 0.05e-3], rel=1e-4)
    assert learning_rate(1e-3, 0, 0, 0.0) == 1e-3
    assert learning_rate(1e-3, 0, 2, 0.5) == pytest.approx(0.5 * 0.525e-3)


def test_progress_goes_round(accelerator: Accelerator, make_state: MakeState) -> None:
    state = make_state()
    for _ in range(3):
        train_step(accelerator, state, [batch_of(range(4))], 1e-3)
    state.samples, state.seconds = 12, 3.5
    progress = state.progress()
    assert progress == {"step": 3, "samples": 12, "seconds": 3.5, "ema_step": 3, "scaler": None}
    fresh = make_state()
    fresh.load_progress(progress)
    assert fresh.progress() == progress
    assert fresh.ema.get_decay(fresh.ema.optimization_step) == state.ema.get_decay(state.ema.optimization_step)
