"""Training steps: noise by sample number, a falling loss, and a separate average.

A gradient that is not finite changes nothing.
"""

import io
import json
import math
from collections.abc import Callable
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
    return TrainBatch(numbers, np.stack(pictures))


def copied(weights: Any) -> Weights:
    return {name: weight.detach().clone() for name, weight in weights.items()}


@pytest.mark.parametrize(
    "objective", [Objective(), Objective(prediction_type="flow")], ids=lambda objective: objective.prediction_type
)
def test_draws_depend_only_on_seed_and_number(objective: Objective) -> None:
    objective = objective.model_copy(update={"conditioning_dropout": 0.5})
    drawn = draws(5, range(100, 108), objective, (2, 16, 12), latents=True)
    assert drawn.latent_noise is not None
    assert (drawn.noise.shape, drawn.noise.dtype) == ((8, 2, 16, 12), torch.float32)
    assert drawn.timesteps.dtype == (torch.float32 if objective.prediction_type == "flow" else torch.int64)
    assert {bool(kept) for kept in drawn.kept} == {True, False}
    assert not torch.equal(drawn.noise, drawn.latent_noise)
    for row, number in enumerate(range(100, 108)):
        alone = draws(5, [number], objective, (2, 16, 12), latents=True)
        assert alone.latent_noise is not None
        assert torch.equal(alone.noise[0], drawn.noise[row])
        assert torch.equal(alone.latent_noise[0], drawn.latent_noise[row])
        assert (alone.timesteps[0], alone.kept[0]) == (drawn.timesteps[row], drawn.kept[row])
    other = draws(6, range(100, 108), objective, (2, 16, 12))
    assert not torch.equal(other.noise, drawn.noise)
    assert not torch.equal(other.timesteps, drawn.timesteps)


def test_what_is_trained_on_images_does_not_move_with_dropout_or_latents() -> None:
    plain = draws(3, range(4), Objective(), (1, 8, 8))
    more = draws(3, range(4), Objective(conditioning_dropout=0.9), (1, 8, 8), latents=True)
    assert torch.equal(plain.noise, more.noise)
    assert torch.equal(plain.timesteps, more.timesteps)
    assert plain.latent_noise is None


def test_draws_have_their_distributions() -> None:
    drawn = draws(
        0, range(4_000), Objective(num_train_timesteps=10, conditioning_dropout=0.25), (1, 4, 4), latents=True
    )
    assert drawn.latent_noise is not None
    for noise in (drawn.noise, drawn.latent_noise):
        assert abs(float(noise.mean())) < 0.02
        assert float(noise.std()) == pytest.approx(1, abs=0.02)
        assert len(noise.flatten(1).unique(dim=0)) == 4_000
    assert np.bincount(drawn.timesteps.numpy(), minlength=10).tolist() == pytest.approx([400] * 10, abs=90)
    assert float(drawn.kept.float().mean()) == pytest.approx(0.75, abs=0.03)


def test_times_of_a_flow_are_logit_normal() -> None:
    sigma = draws(0, range(4_000), Objective(prediction_type="flow"), (1, 1, 1)).timesteps.double() / 1_000
    assert 0 < float(sigma.min()) < float(sigma.max()) < 1
    logit = (sigma / (1 - sigma)).log()
    assert float(logit.mean()) == pytest.approx(0, abs=0.05)
    assert float(logit.std()) == pytest.approx(1, abs=0.04)
    assert float((logit.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.025)


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
    for train_state in (state, twin):
        train_step(accelerator, train_state, [batch_of(range(4))], 1e-3)
    before, average = copied(state.bare.state_dict()), copied(state.ema_state_dict())
    broken = state.bare.conv_in.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="gradient norm nan at step 1"):
        train_step(accelerator, state, [batch_of(range(4))], 1e-3)
    assert all(torch.equal(weight, before[name]) for name, weight in state.bare.state_dict().items())
    assert all(torch.equal(weight, average[name]) for name, weight in state.ema_state_dict().items())
    assert state.step == 1
    broken.remove()
    for train_state in (state, twin):  # the invalid gradient has no further effect
        train_step(accelerator, train_state, [batch_of(range(4))], 1e-3)
    assert all(torch.equal(weight, twin.bare.state_dict()[name]) for name, weight in state.bare.state_dict().items())


def test_a_gradient_that_overflows_lowers_the_scale_and_changes_no_weights(make_unet: Callable[[int], Any]) -> None:
    scaling = Accelerator(cpu=True)
    scaling.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-126)
    unet = make_unet(0)
    with torch.no_grad():
        unet.conv_out.weight.mul_(1e3)
    state = TrainState(scaling, unet, Objective(), 2e-3, seed=0)
    before, average = copied(state.bare.state_dict()), copied(state.ema_state_dict())
    _, norm = train_step(scaling, state, [batch_of(range(4))], 1e-3)
    assert not math.isfinite(norm)
    assert all(torch.equal(weight, before[name]) for name, weight in state.bare.state_dict().items())
    assert all(torch.equal(weight, average[name]) for name, weight in state.ema_state_dict().items())
    assert scaling.scaler.get_scale() == 1.0
    other = Accelerator(cpu=True)
    other.scaler = torch.amp.GradScaler("cpu")
    TrainState(other, make_unet(0), Objective(), 2e-3, seed=0).load_progress(json.loads(json.dumps(state.progress())))
    assert other.scaler.get_scale() == 1.0
    _, norm = train_step(scaling, state, [batch_of(range(4))], 1e-3)
    assert math.isfinite(norm)
    assert not torch.equal(state.bare.conv_in.weight, before["conv_in.weight"])


def test_a_loss_that_is_not_finite_raises_with_a_scaler_too(make_unet: Callable[[int], Any]) -> None:
    scaling = Accelerator(cpu=True)
    scaling.scaler = torch.amp.GradScaler("cpu")
    state = TrainState(scaling, make_unet(0), Objective(), 2e-3, seed=0)
    with torch.no_grad():
        state.bare.conv_out.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="at step 0"):
        train_step(scaling, state, [batch_of(range(4))], 1e-3)


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
    progress = state.progress()
    assert progress == {"step": 3, "samples": 12, "seconds": 3.5, "ema_step": 3, "scaler": None}
    fresh = make_state()
    fresh.load_progress(progress)
    assert fresh.progress() == progress
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


def test_micro_batches_of_any_size_are_one_whole_batch(accelerator: Accelerator, make_state: MakeState) -> None:
    whole, split = make_state(), make_state()
    loss, norm = train_step(accelerator, whole, [batch_of(range(6))], 1e-3)
    assert train_step(accelerator, split, [batch_of(range(5)), batch_of(range(5, 6))], 1e-3) == pytest.approx(
        (loss, norm), rel=1e-4
    )


@pytest.mark.parametrize(("size", "sizes"), [(7, [7]), (9, [7]), (4, [3, 4]), (3, [2, 2, 3]), (1, [1] * 7)])
def test_a_batch_is_split_into_equal_parts_with_all_that_belongs_to_a_sample(size: int, sizes: list[int]) -> None:
    rows = np.arange(7, dtype=np.float32)
    drawn = draws(0, range(10, 17), Objective(), (1, 2, 2), latents=True)
    latents = np.tile(rows.reshape(7, 1, 1, 1, 1), (1, 2, 1, 2, 2))
    batch = TrainBatch(range(10, 17), rows.astype(np.uint8).reshape(7, 1, 1), rows.reshape(7, 1), latents, drawn)
    parts = batch.split(size)
    assert [len(part.numbers) for part in parts] == sizes
    assert [number for part in parts for number in part.numbers] == list(range(10, 17))
    for part in parts:
        first, drawn_part = part.numbers[0] - 10, part.drawn
        of_part = slice(first, first + len(part.numbers))
        assert part.images is not None
        assert part.encodings is not None
        assert part.latents is not None
        assert drawn_part is not None
        assert drawn_part.latent_noise is not None
        assert drawn.latent_noise is not None
        assert part.images[:, 0, 0].tolist() == part.encodings[:, 0].tolist() == rows[of_part].tolist()
        assert part.latents[:, 0, 0, 0, 0].tolist() == rows[of_part].tolist()
        assert torch.equal(drawn_part.timesteps, drawn.timesteps[of_part])
        assert torch.equal(drawn_part.noise, drawn.noise[of_part])
        assert torch.equal(drawn_part.kept, drawn.kept[of_part])
        assert torch.equal(drawn_part.latent_noise, drawn.latent_noise[of_part])
    (bare,) = TrainBatch([3, 4], None).split(2)
    assert (bare.images, bare.encodings, bare.latents, bare.drawn) == (None, None, None, None)


def test_min_snr_weighs_the_loss(accelerator: Accelerator, make_unet: Callable[[int], Any]) -> None:
    weighed = Objective(prediction_type="v_prediction", min_snr_gamma=0.5)
    batch = batch_of(range(6))
    drawn = draws(0, batch.numbers, weighed, (1, 16, 16))
    assert batch.images is not None
    clean = to_model(torch.from_numpy(batch.images)).unsqueeze(1)
    with torch.no_grad():
        sample_losses = losses(make_unet(0), weighed, clean, drawn.noise, drawn.timesteps)
    expected = float((sample_losses * weights(weighed, drawn.timesteps)).mean())
    state = TrainState(accelerator, make_unet(0), weighed, 1e-3, seed=0)
    assert train_step(accelerator, state, [batch], 0.0)[0] == pytest.approx(expected, rel=1e-4)
    assert abs(expected - float(sample_losses.mean())) > 0.01


def test_gradient_checkpointing_changes_memory_not_results(
    accelerator: Accelerator, make_unet: Callable[[int], Any]
) -> None:
    outcomes = [
        train_step(
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
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8)
    outcomes = []
    for made_before in (False, True):
        torch.manual_seed(0)
        vae = build_vae("vae-tiny", mel)
        vae.register_to_config(scaling_factor=0.5)
        state = TrainState(
            accelerator, build_network("tiny-latent", mel, vae), objective_for("tiny-latent"), 1e-3, seed=0, vae=vae
        )
        moments = posterior_moments(vae, images).numpy()
        batch = TrainBatch(range(4), None, latents=moments) if made_before else TrainBatch(range(4), images)
        clean, drawn, encodings = on_device(accelerator, state, batch)
        assert clean.shape == drawn.noise.shape == (4, 4, 8, 8)
        assert encodings is None
        assert drawn.latent_noise is not None
        torch.testing.assert_close(
            clean, 0.5 * torch.from_numpy(moments[:, 0] + moments[:, 1] * drawn.latent_noise.numpy())
        )
        outcomes.append(train_step(accelerator, state, [with_draws(state, batch) if made_before else batch], 1e-3))
        assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert outcomes[0] == pytest.approx(outcomes[1], rel=1e-6)


def test_a_conditional_network_sees_its_encodings_but_for_those_dropped(accelerator: Accelerator) -> None:
    mel = MelConfig(x_res=16, y_res=16)
    torch.manual_seed(0)
    objective = objective_for("tiny-conditional", conditioning_dropout=0.5)
    state = TrainState(accelerator, build_network("tiny-conditional", mel, encoding_dim=6), objective, 1e-3, seed=0)
    encodings = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    batch = TrainBatch(range(8), batch_of(range(8)).images, encodings)
    _, drawn, shown = on_device(accelerator, state, batch)
    assert shown is not None
    assert torch.equal(shown[drawn.kept], torch.from_numpy(encodings)[drawn.kept])
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
    losses_seen = [train_step(accelerator, state, [batch], 2e-3)[0] for _ in range(25)]
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
                train_step(accelerator, state, [batch_of(range(4)), batch_of(range(4, 8))], 1e-3),
                state.state_dict().keys(),
            )
        )
    assert ends[1][0] == pytest.approx(ends[0][0], rel=1e-3)
    assert ends[1][1] == ends[0][1]
