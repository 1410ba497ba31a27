"""The batch engine: items join, leave, finish and fail between network calls, each as if it were alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from audiodiff_core.diffusion.methods import METHODS, SchedulerName
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.sampling import Batch, ExecutionProfile, Failed, Finished, GenerateRequest, Item, Sampler
from audiodiff_core.sampling.batch import MAX_POOLS
from audiodiff_core.sampling.item import Outcome
from audiodiff_core.sampling.pool import guided_prediction

PROFILE = ExecutionProfile(batch_size=4)
EPSILON = Objective(prediction_type="epsilon", zero_terminal_snr=False)
DIFFUSION: list[SchedulerName] = [name for name in METHODS if not name.startswith("flow")]


@pytest.fixture(scope="module")
def sampler(make_unet: Callable[[int], Any]) -> Sampler:
    return Sampler(make_unet(0), EPSILON.scheduler("ddim"), PROFILE)


class Broken(torch.nn.Module):
    """A network that predicts NaN for samples of which the first pixel is far from 0."""

    config = SimpleNamespace(in_channels=1, out_channels=1, sample_size=16)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        broken = sample[:, :, :1, :1] > 50
        return (torch.where(broken, torch.nan, 0.1 * sample),)


def item(seed: int, steps: int = 4, scheduler: SchedulerName = "ddim", width: int = 16, **more: Any) -> Item:
    return Item(GenerateRequest(seed=seed, steps=steps, scheduler=scheduler, **more), width)


def finish(batch: Batch) -> list[Outcome]:
    outcomes = []
    while len(batch):
        outcomes += batch.step()
    return outcomes


def alone(sampler: Sampler, wanted: Item) -> bytes:
    batch = sampler.batch()
    batch.add(wanted)
    (outcome,) = finish(batch)
    return bits(outcome)


def bits(outcome: Outcome) -> bytes:
    assert isinstance(outcome, Finished)
    return outcome.sample.numpy().tobytes()


@pytest.mark.parametrize("name", DIFFUSION)
def test_those_who_join_and_leave_change_nothing(sampler: Sampler, name: SchedulerName) -> None:
    wanted = item(1, 6, name)
    batch = sampler.batch()
    others = [item(2, 3, "unipc"), item(3, 9, "ddpm"), item(4, 5, "euler")]
    batch.add(others[0])
    batch.step()
    batch.add(wanted)
    batch.add(others[1])
    batch.step()
    batch.add(others[2])
    batch.step()
    assert batch.cancel(others[1])
    batch.add(item(5, 2, "dpm++_sde"))
    outcomes = {outcome.item: outcome for outcome in finish(batch)}
    assert others[1] not in outcomes
    assert bits(outcomes[wanted]) == alone(sampler, wanted)


def test_outcomes_come_as_soon_as_they_exist(sampler: Sampler) -> None:
    batch = sampler.batch()
    short, long = item(1, 2), item(2, 200)
    batch.add(long)
    batch.add(short)
    assert batch.step() == []
    (outcome,) = batch.step()
    assert outcome.item is short
    assert batch.progress == {long: (2, 200)}
    assert batch.cancel(long)
    assert not batch.cancel(long)
    assert (len(batch), batch.progress) == (0, {})


def test_one_that_is_not_finite_fails_alone() -> None:
    sampler = Sampler(Broken(), EPSILON.scheduler("ddim"), PROFILE)
    broken = torch.zeros(1, 16, 16)
    broken[0, 0, 0] = 100
    items = [item(seed) for seed in range(4)]
    items[2] = replace(items[2], noise=broken)
    batch = sampler.batch()
    for one in items:
        batch.add(one)
    outcomes = {outcome.item: outcome for outcome in finish(batch)}
    failed = outcomes.pop(items[2])
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("seed 2: the network's sample is not finite")
    assert {one: bits(outcome) for one, outcome in outcomes.items()} == {
        one: alone(sampler, one) for one in items if one is not items[2]
    }
    # The slot of the failed item is clean again.
    batch.add(items[2])
    batch.step()
    batch.cancel(items[2])
    later = [item(seed) for seed in range(10, 14)]
    for one in later:
        batch.add(one)
    assert all(isinstance(outcome, Finished) for outcome in finish(batch))


def test_failures_are_raised_after_all_others_have_been_yielded() -> None:
    sampler = Sampler(Broken(), EPSILON.scheduler("ddim"), PROFILE)
    items = [item(seed) for seed in range(6)]
    items[0] = replace(items[0], noise=torch.full((1, 16, 16), 100.0))
    made: list[int] = []
    with pytest.raises(FloatingPointError, match=r"^seed 0: the network's sample is not finite"):
        made.extend(one.request.seed for one, _ in sampler.sample(items))
    assert sorted(made) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (item(7, scheduler="flow_euler"), "scheduler flow_euler does not fit"),
        (replace(item(7), start_step=4), "start_step 4: there are 4 steps"),
        (replace(item(7), noise=torch.zeros(1, 16, 17)), r"noise of shape \(1, 16, 17\) for seed 7: the network takes"),
        (replace(item(7), encoding=torch.zeros(3)), r"encoding of shape \(3,\) for seed 7: the network is not cond"),
        (replace(item(7), keep=torch.zeros(16, 16, dtype=torch.bool)), r"keep of shape \(16, 16\) for seed 7"),
        (replace(item(7), inverted=True), "seed 7: an inversion needs the clean content"),
    ],
)
def test_an_item_that_does_not_fit_is_refused_at_once(sampler: Sampler, wrong: Item, message: str) -> None:
    batch = sampler.batch()
    good = [item(seed) for seed in range(3)]
    for one in good:
        batch.add(one)
    with pytest.raises(ValueError, match=message):
        batch.add(wrong)
    assert {outcome.item for outcome in finish(batch)} == set(good)


def test_slots_and_pools_are_limited(sampler: Sampler) -> None:
    batch = sampler.batch()
    items = [item(seed) for seed in range(4)]
    assert batch.free == 4
    for one in items:
        assert batch.has_room(one)
        batch.add(one)
    assert batch.free == 0
    assert not batch.has_room(item(9))
    with pytest.raises(ValueError, match="seed 9: the batch has 4 slots"):
        batch.add(item(9))
    with pytest.raises(ValueError, match="seed 1: the item is in the batch already"):
        batch.add(items[1])
    for width in range(1, MAX_POOLS):
        batch.add(item(9, width=16 + 8 * width))
    assert not batch.has_room(item(9, width=8))


def test_a_preview_approaches_the_sample(sampler: Sampler) -> None:
    batch, wanted = sampler.batch(), item(3, 12)
    batch.add(wanted)
    previews = []
    for _ in range(11):
        batch.step()
        previews.append(batch.preview(wanted))
    (outcome,) = batch.step()
    assert isinstance(outcome, Finished)
    errors = [float((preview - outcome.sample).abs().mean()) for preview in previews]
    assert errors[-1] < 0.5 * errors[0]


def test_the_network_that_is_passed_in_is_left_alone(make_unet: Callable[[int], Any]) -> None:
    unet = make_unet(0).train()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    sampler = Sampler(unet, EPSILON.scheduler("ddim"), PROFILE)
    list(sampler.sample([item(0, 2)]))
    assert unet.training
    assert next(unet.parameters()).is_contiguous()
    assert all(torch.equal(before[name], tensor) for name, tensor in unet.state_dict().items())


def test_rescaled_guidance_has_the_deviation_of_the_conditional_prediction() -> None:
    conditional, unconditional = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    guided = guided_prediction(conditional, unconditional, 7.0, 0.0)
    torch.testing.assert_close(guided, unconditional + 7 * (conditional - unconditional))
    rescaled = guided_prediction(conditional, unconditional, 7.0, 1.0)
    assert float(rescaled.std()) == pytest.approx(float(conditional.std()), rel=1e-5)
    half = guided_prediction(conditional, unconditional, 7.0, 0.5)
    torch.testing.assert_close(half, (guided + rescaled) / 2)


@pytest.mark.parametrize("batch_sizes", [(1, 4), (4, 8)])
def test_a_batch_may_have_another_size_than_its_profile(sampler: Sampler, batch_sizes: Sequence[int]) -> None:
    samples = []
    for size in batch_sizes:
        batch, wanted = sampler.batch(size), item(1)
        batch.add(wanted)
        (outcome,) = finish(batch)
        assert isinstance(outcome, Finished)
        samples.append(outcome.sample)
    torch.testing.assert_close(samples[0], samples[1], atol=1e-4, rtol=0)
