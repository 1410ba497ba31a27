"""Training steps: a falling loss, and a separate average.

A gradient that is not finite changes nothing.
"""

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from audiodiff_core.diffusion.objectives import Objective, losses, weights
from audiodiff_core.latents.posteriors import posterior_moments
from audiodiff_core.mel import MelConfig, to_model
from audiodiff_core.models import build_network, build_vae, objective_for
from audiodiff_core.training import TrainBatch, TrainState, draws, learning_rate, on_device, train_step, with_draws
from audiodiff_core.training.optimizer import load_moments, moments_of, update_weights
from audiodiff_core.training.step import ENCODED_TOGETHER
from audiodiff_core.training.weight_average import WeightAverage
from tests.rare import rare

Weights = dict[str, torch.Tensor]
MakeState = Callable[..., TrainState]


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def make_state(accelerator: Accelerator, make_unet: Callable[[int], Any]) -> MakeState:
    def build(rate: float = 2e-3) -> TrainState:
        return TrainState(accelerator, make_unet(0), Objective(), rate, seed=0)

    return build


def batch_of(numbers: range) -> TrainBatch:
    """Return pictures that depend only on the sample numbers."""
    band, frame = np.mgrid[0:16, 0:16]
    pictures = [(127 + 120 * np.sin((band + number) / 3) * np.cos(frame / 4)).astype(np.uint8) for number in numbers]
    return TrainBatch(torch.tensor(numbers), torch.from_numpy(np.stack(pictures)))


def copied(weights: Any) -> Weights:
    return {name: weight.detach().clone() for name, weight in weights.items()}


def stepped(
    accelerator: Accelerator, state: TrainState, micro_batches: list[TrainBatch], rate: float
) -> tuple[float, float]:
    """Take an optimizer step, and return its loss and the norm of its gradient."""
    loss, norm = train_step(accelerator, state, micro_batches, rate)
    assert loss.shape == norm.shape == ()
    return float(loss), float(norm)


def test_loss_falls_on_one_batch(accelerator: Accelerator, make_state: MakeState) -> None:
    state, batch = make_state(), batch_of(range(8))
    losses = [stepped(accelerator, state, [batch], 2e-3)[0] for _ in range(25)]
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
    assert not any(
        torch.equal(weight, before[name])
        for name, weight in state.bare.named_parameters()
        if "conv" in name and "weight" in name
    )


def test_average_is_kept_apart_from_the_live_weights(accelerator: Accelerator, make_state: MakeState) -> None:
    state = make_state()
    for _ in range(5):
        train_step(accelerator, state, [batch_of(range(4))], 2e-3)
    live = copied(state.bare.state_dict())
    averaged = state.ema_state_dict()
    assert averaged.keys() == live.keys()
    assert not torch.equal(averaged["conv_in.weight"], live["conv_in.weight"])
    assert all(torch.equal(weight, live[name]) for name, weight in state.bare.state_dict().items())


def test_average_by_hand(accelerator: Accelerator, make_state: MakeState) -> None:
    state = make_state()
    name = "conv_in.weight"
    expected = copied(state.bare.state_dict())[name].double()
    for step in range(1, 7):
        train_step(accelerator, state, [batch_of(range(4))], 2e-3)
        decay = 1 - step**-0.75
        expected = decay * expected + (1 - decay) * state.bare.state_dict()[name].double()
    torch.testing.assert_close(state.ema_state_dict()[name].double(), expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(state.ema_state_dict()[name], state.bare.state_dict()[name], atol=1e-5)


def test_decay_of_the_average_warms_up_to_its_bound() -> None:
    average = WeightAverage([torch.zeros(3)], decay=0.99)
    assert [average.decay_at(step) for step in (1, 16, 10**6)] == pytest.approx([0, 0.875, 0.99])
    average.steps = 10**6
    average.update([torch.ones(3)])
    assert average.weights[0].tolist() == pytest.approx([0.01] * 3)


def test_average_takes_optimizer_steps_not_micro_steps(accelerator: Accelerator, make_state: MakeState) -> None:
    state = make_state()
    for step in range(2):
        train_step(accelerator, state, [batch_of(range(4 * step + at, 4 * step + at + 1)) for at in range(4)], 2e-3)
    assert state.ema.steps == state.step == 2


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
        results.append((*stepped(accelerator, state, micro_batches, 1e-3), gradients))
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
    _, norm = stepped(accelerator, state, [batch_of(range(4))], 1e-3)
    assert norm > 10
    assert norms == pytest.approx([1.0], rel=1e-3)


@pytest.mark.parametrize(("steps", "value"), [(1, "nan"), rare(1, "inf"), (0, "inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(
    accelerator: Accelerator, make_state: MakeState, steps: int, value: str
) -> None:
    state, twin = make_state(), make_state()
    for train_state in (state, twin):
        for _ in range(steps):
            train_step(accelerator, train_state, [batch_of(range(4))], 1e-3)
    before, average = copied(state.bare.state_dict()), copied(state.ema_state_dict())
    broken = state.bare.conv_in.weight.register_hook(lambda gradient: gradient * float(value))
    loss, norm = stepped(accelerator, state, [batch_of(range(4))], 1e-3)
    assert math.isfinite(loss)
    assert not math.isfinite(norm)
    assert all(torch.equal(weight, before[name]) for name, weight in state.bare.state_dict().items())
    assert all(torch.equal(weight, average[name]) for name, weight in state.ema_state_dict().items())
    assert (state.step, int(state.skipped), state.skipped.dtype) == (steps + 1, 1, torch.int64)
    moments = state.optimizer.optimizer.state_dict()["state"]
    assert {float(of_weight["step"]) for of_weight in moments.values()} == {steps}
    if steps:
        expected = twin.optimizer.optimizer.state_dict()["state"]
        for number, of_weight in moments.items():
            assert all(torch.equal(values, expected[number][name]) for name, values in of_weight.items())
    broken.remove()
    for train_state in (state, twin):  # the invalid gradient has no further effect
        train_step(accelerator, train_state, [batch_of(range(4))], 1e-3)
    assert all(torch.equal(weight, twin.bare.state_dict()[name]) for name, weight in state.bare.state_dict().items())
    assert (int(state.skipped), int(twin.skipped)) == (1, 0)


def test_an_optimizer_without_a_flag_is_told_by_the_host(accelerator: Accelerator) -> None:
    """Check SGD in place of `adamw_8bit`, which needs a GPU."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD([weight], lr=1.0))
    for finite, expected in ((False, 1.0), (True, 0.5)):
        weight.grad = torch.ones(2)
        update_weights(optimizer, 0.5, torch.tensor(finite))
        assert weight.tolist() == [expected] * 2
        assert weight.grad is None


def test_a_gradient_that_overflows_lowers_the_scale_and_changes_no_weights(make_unet: Callable[[int], Any]) -> None:
    scaling = Accelerator(cpu=True)
    scaling.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-126)
    unet = make_unet(0)
    with torch.no_grad():
        unet.conv_out.weight.mul_(1e3)
    state = TrainState(scaling, unet, Objective(), 2e-3, seed=0)
    before, average = copied(state.bare.state_dict()), copied(state.ema_state_dict())
    _, norm = stepped(scaling, state, [batch_of(range(4))], 1e-3)
    assert not math.isfinite(norm)
    assert all(torch.equal(weight, before[name]) for name, weight in state.bare.state_dict().items())
    assert all(torch.equal(weight, average[name]) for name, weight in state.ema_state_dict().items())
    assert scaling.scaler.get_scale() == 1.0
    assert (state.step, int(state.skipped)) == (1, 1)
    other = Accelerator(cpu=True)
    other.scaler = torch.amp.GradScaler("cpu")
    TrainState(other, make_unet(0), Objective(), 2e-3, seed=0).load_progress(json.loads(json.dumps(state.progress())))
    assert other.scaler.get_scale() == 1.0
    _, norm = stepped(scaling, state, [batch_of(range(4))], 1e-3)
    assert math.isfinite(norm)
    assert not torch.equal(state.bare.conv_in.weight, before["conv_in.weight"])
    assert int(state.skipped) == 1


def test_a_loss_that_is_not_finite_is_returned_with_a_scaler_too(make_unet: Callable[[int], Any]) -> None:
    scaling = Accelerator(cpu=True)
    scaling.scaler = torch.amp.GradScaler("cpu")
    state = TrainState(scaling, make_unet(0), Objective(), 2e-3, seed=0)
    with torch.no_grad():
        state.bare.conv_out.weight.fill_(float("inf"))
    assert not any(map(math.isfinite, stepped(scaling, state, [batch_of(range(4))], 1e-3)))
    assert int(state.skipped) == 1


def test_learning_rate_warms_up_then_follows_a_cosine() -> None:
    assert [learning_rate(1e-3, step, 4, 0.0) for step in (0, 1, 3, 4, 100)] == pytest.approx(
        [0.25e-3, 0.5e-3, 1e-3, 1e-3, 1e-3]
    )
    cosine = [learning_rate(1e-3, 1_000, 4, progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0, 1.3)]
    assert cosine == pytest.approx([1e-3, 0.860_87e-3, 0.525e-3, 0.189_13e-3, 0.05e-3, 0.05e-3], rel=1e-4)
    assert learning_rate(1e-3, 0, 0, 0.0) == 1e-3
    assert learning_rate(1e-3, 0, 2, 0.5) == pytest.approx(0.5 * 0.525e-3)


def test_progress_goes_round(accelerator: Accelerator, make_state: MakeState) -> None:
    state = make_state()
    for _ in range(3):
        train_step(accelerator, state, [batch_of(range(4))], 1e-3)
    state.samples, state.seconds = 12, 3.5
    state.skipped += 2
    progress = json.loads(json.dumps(state.progress()))
    assert progress == {"step": 3, "samples": 12, "seconds": 3.5, "skipped": 2, "ema_step": 3, "scaler": None}
    fresh = make_state()
    fresh.load_progress(progress)
    assert fresh.progress() == progress
    assert fresh.skipped.dtype == torch.int64
    assert fresh.ema.steps == 3


def saved_and_loaded(content: Any) -> Any:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("steps", [rare(0), 2])
def test_a_state_goes_round_and_goes_on_to_the_same_bits(
    accelerator: Accelerator, make_state: MakeState, steps: int
) -> None:
    state, fresh, unsaved = make_state(), make_state(), make_state()
    for _ in range(steps):
        train_step(accelerator, unsaved, [batch_of(range(4))], 1e-3)
        train_step(accelerator, state, [batch_of(range(4))], 1e-3)
    fresh.load_state_dict(saved_and_loaded(state.state_dict()))
    fresh.load_ema_state_dict(saved_and_loaded(state.ema_state_dict()))
    fresh.load_optimizer_state_dict(saved_and_loaded(state.optimizer_state_dict()))
    fresh.load_progress(state.progress())
    for train_state in (state, fresh, unsaved):
        for _ in range(2):  # the second step depends on Adam's step count
            train_step(accelerator, train_state, [batch_of(range(4, 8))], 1e-3)
    assert all(torch.equal(weight, fresh.bare.state_dict()[name]) for name, weight in state.bare.state_dict().items())
    assert all(
        torch.equal(weight, unsaved.bare.state_dict()[name]) for name, weight in state.bare.state_dict().items()
    ), "saving changes nothing"
    assert all(torch.equal(weight, fresh.ema_state_dict()[name]) for name, weight in state.ema_state_dict().items())


def test_loaded_moments_have_the_strides_of_their_weights() -> None:
    """CUDA's fused kernel refuses other strides. Checkpoints hold contiguous tensors."""
    network: Any = torch.nn.Conv2d(3, 4, 3)
    network.to(memory_format=torch.channels_last)
    old, new = (torch.optim.AdamW(network.parameters(), fused=True) for _ in range(2))
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    old.step()
    old.zero_grad()
    saved = moments_of(old, network)
    for state in saved["state"].values():
        state.update({name: value.contiguous().clone() for name, value in state.items()})
    load_moments(new, network, saved)
    assert not network.weight.is_contiguous()
    for parameter in network.parameters():
        for name in ("exp_avg", "exp_avg_sq"):
            assert new.state[parameter][name].stride() == parameter.stride()
            assert torch.equal(new.state[parameter][name], old.state[parameter][name])
        assert float(new.state[parameter]["step"]) == 1


def test_micro_batches_of_any_size_are_one_whole_batch(accelerator: Accelerator, make_state: MakeState) -> None:
    whole, split = make_state(), make_state()
    loss, norm = stepped(accelerator, whole, [batch_of(range(6))], 1e-3)
    assert stepped(accelerator, split, [batch_of(range(5)), batch_of(range(5, 6))], 1e-3) == pytest.approx(
        (loss, norm), rel=1e-4
    )


def test_min_snr_weighs_the_loss(accelerator: Accelerator, make_unet: Callable[[int], Any]) -> None:
    weighed = Objective(prediction_type="v_prediction", min_snr_gamma=0.5)
    batch = batch_of(range(6))
    drawn = draws(0, batch.numbers, weighed, (1, 16, 16), device="cpu")
    assert batch.images is not None
    clean = to_model(batch.images).unsqueeze(1)
    with torch.no_grad():
        sample_losses = losses(make_unet(0), weighed, clean, drawn.noise, drawn.timesteps)
    expected = float((sample_losses * weights(weighed, drawn.timesteps)).mean())
    state = TrainState(accelerator, make_unet(0), weighed, 1e-3, seed=0)
    assert stepped(accelerator, state, [batch], 0.0)[0] == pytest.approx(expected, rel=1e-4)
    assert abs(expected - float(sample_losses.mean())) > 0.01


def test_gradient_checkpointing_changes_memory_not_results(
    accelerator: Accelerator, make_unet: Callable[[int], Any]
) -> None:
    outcomes = [
        stepped(
            accelerator,
            TrainState(accelerator, make_unet(0), Objective(), 1e-3, seed=0, gradient_checkpointing=on),
            [batch_of(range(4))],
            1e-3,
        )
        for on in (False, True)
    ]
    assert outcomes[0] == pytest.approx(outcomes[1], rel=1e-6)


def test_an_optimizer_that_the_device_has_not_is_refused(
    accelerator: Accelerator, make_unet: Callable[[int], Any]
) -> None:
    with pytest.raises(ValueError, match="adamw_8bit needs a CUDA GPU, but the device is cpu: use adamw"):
        TrainState(accelerator, make_unet(0), Objective(), 1e-3, seed=0, optimizer="adamw_8bit")


def test_latents_made_before_train_as_those_made_on_the_way(accelerator: Accelerator) -> None:
    mel = MelConfig(x_res=32, y_res=32)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8))
    outcomes = []
    for made_before in (False, True):
        torch.manual_seed(0)
        vae = build_vae("vae-tiny", mel)
        vae.register_to_config(scaling_factor=0.5)
        state = TrainState(
            accelerator, build_network("tiny-latent", mel, vae), objective_for("tiny-latent"), 1e-3, seed=0, vae=vae
        )
        moments, numbers = posterior_moments(vae, images), torch.arange(4)
        batch = TrainBatch(numbers, None, latents=moments) if made_before else TrainBatch(numbers, images)
        clean, drawn, encodings = on_device(accelerator, state, batch)
        assert clean.shape == drawn.noise.shape == (4, 4, 8, 8)
        assert encodings is None
        assert drawn.latent_noise is not None
        torch.testing.assert_close(clean, 0.5 * (moments[:, 0] + moments[:, 1] * drawn.latent_noise))
        outcomes.append(stepped(accelerator, state, [with_draws(state, batch) if made_before else batch], 1e-3))
        assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert outcomes[0] == pytest.approx(outcomes[1], rel=1e-6)


def test_an_autoencoder_encodes_a_few_images_at_a_time(accelerator: Accelerator) -> None:
    mel = MelConfig(x_res=32, y_res=32)
    torch.manual_seed(0)
    vae = build_vae("vae-tiny", mel)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 32, 32), dtype=np.uint8))
    expected = posterior_moments(vae, images)
    state = TrainState(
        accelerator, build_network("tiny-latent", mel, vae), objective_for("tiny-latent"), 1e-3, seed=0, vae=vae
    )
    counts: list[int] = []
    vae.encoder.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    clean, drawn, _ = on_device(accelerator, state, TrainBatch(torch.arange(20), images))
    assert counts == [ENCODED_TOGETHER, ENCODED_TOGETHER, 20 - 2 * ENCODED_TOGETHER]
    assert drawn.latent_noise is not None
    torch.testing.assert_close(
        clean, vae.config.scaling_factor * (expected[:, 0] + expected[:, 1] * drawn.latent_noise)
    )


def test_a_conditional_network_sees_its_encodings_but_for_those_dropped(accelerator: Accelerator) -> None:
    mel = MelConfig(x_res=16, y_res=16)
    torch.manual_seed(0)
    objective = objective_for("tiny-conditional", conditioning_dropout=0.5)
    state = TrainState(accelerator, build_network("tiny-conditional", mel, encoding_dim=6), objective, 1e-3, seed=0)
    encodings = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    batch = replace(batch_of(range(8)), encodings=encodings)
    _, drawn, shown = on_device(accelerator, state, batch)
    assert shown is not None
    assert torch.equal(shown[drawn.kept], encodings[drawn.kept])
    assert shown[~drawn.kept].abs().max() == 0
    assert 0 < int(drawn.kept.sum()) < 8
    before = {name: parameter.clone() for name, parameter in state.bare.named_parameters() if "attn2.to_v" in name}
    train_step(accelerator, state, [batch], 1e-3)
    assert before
    assert not any(
        torch.equal(parameter, before[name]) for name, parameter in state.bare.named_parameters() if name in before
    )


def test_dropout_of_what_is_not_there_is_refused(accelerator: Accelerator, make_unet: Callable[[int], Any]) -> None:
    with pytest.raises(ValueError, match=r"conditioning_dropout 0\.1: the network takes no encodings"):
        TrainState(accelerator, make_unet(0), Objective(conditioning_dropout=0.1), 1e-3, seed=0)


def test_a_flow_trains(accelerator: Accelerator, make_unet: Callable[[int], Any]) -> None:
    state, batch = (
        TrainState(accelerator, make_unet(0), Objective(prediction_type="flow"), 2e-3, seed=0),
        batch_of(range(8)),
    )
    losses_seen = [stepped(accelerator, state, [batch], 2e-3)[0] for _ in range(25)]
    assert losses_seen[-1] < 0.7 * losses_seen[0]


def test_schedules_end_where_they_say() -> None:
    assert [learning_rate(1e-3, 100, 4, at, "linear") for at in (0.0, 0.5, 1.0)] == pytest.approx(
        [1e-3, 0.525e-3, 0.05e-3]
    )
    assert [learning_rate(1e-3, step, 4, 1.0, "constant") for step in (0, 1, 100)] == pytest.approx(
        [0.25e-3, 0.5e-3, 1e-3]
    )


@pytest.mark.soak
def test_a_compiled_network_trains_the_same(accelerator: Accelerator, make_unet: Callable[[int], Any]) -> None:
    ends = []
    for compiled in (False, True):
        state = TrainState(accelerator, make_unet(0), Objective(), 1e-3, seed=0, compiled=compiled)
        ends.append(
            (
                stepped(accelerator, state, [batch_of(range(4)), batch_of(range(4, 8))], 1e-3),
                state.state_dict().keys(),
            )
        )
    assert ends[1][0] == pytest.approx(ends[0][0], rel=1e-3)
    assert ends[1][1] == ends[0][1]
