"""Random draws by sample number, and batches that are moved, split and joined with their draws."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from audiodiff_core.diffusion.methods import PredictionType
from audiodiff_core.diffusion.objectives import Objective, TimestepSampling
from audiodiff_core.training import Draws, TrainBatch, draws

HALF_DROPPED = Objective(conditioning_dropout=0.5)


def drawn_for(numbers: torch.Tensor, objective: Objective, shape: tuple[int, ...], seed: int = 0) -> Draws:
    return draws(seed, numbers, objective, shape, latents=True, device="cpu")


def batch_of(*numbers: int) -> TrainBatch:
    """Return a batch with all kinds of tensors, which depend only on the sample numbers."""
    counted = torch.tensor(numbers)
    return TrainBatch(
        counted,
        (counted % 256).to(torch.uint8).reshape(-1, 1, 1).expand(-1, 4, 4),
        encodings=counted.float().unsqueeze(1),
        latents=counted.float().reshape(-1, 1, 1, 1, 1).expand(-1, 2, 1, 2, 2),
        drawn=drawn_for(counted, HALF_DROPPED, (1, 2, 2)),
    )


def tensors_of(batch: TrainBatch) -> dict[str, torch.Tensor]:
    parts: list[Any] = [batch, batch.drawn]
    values = {field.name: getattr(part, field.name) for part in parts for field in fields(part)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def assert_same(left: TrainBatch, right: TrainBatch) -> None:
    ours, theirs = tensors_of(left), tensors_of(right)
    assert len(ours) == 8
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    "objective", [Objective(), Objective(prediction_type="flow")], ids=lambda objective: objective.prediction_type
)
def test_draws_depend_only_on_seed_and_number(objective: Objective) -> None:
    objective = objective.model_copy(update={"conditioning_dropout": 0.5})
    numbers = torch.arange(100, 108)
    drawn = drawn_for(numbers, objective, (2, 16, 12), seed=5)
    assert drawn.latent_noise is not None
    assert (drawn.noise.shape, drawn.noise.dtype) == ((8, 2, 16, 12), torch.float32)
    assert drawn.timesteps.dtype == (torch.float32 if objective.prediction_type == "flow" else torch.int64)
    assert {bool(kept) for kept in drawn.kept} == {True, False}
    assert not torch.equal(drawn.noise, drawn.latent_noise)
    for row in range(8):
        alone = drawn_for(numbers[row : row + 1], objective, (2, 16, 12), seed=5)
        assert alone.latent_noise is not None
        assert torch.equal(alone.noise[0], drawn.noise[row])
        assert torch.equal(alone.latent_noise[0], drawn.latent_noise[row])
        assert (alone.timesteps[0], alone.kept[0]) == (drawn.timesteps[row], drawn.kept[row])
    other = drawn_for(numbers, objective, (2, 16, 12), seed=6)
    assert not torch.equal(other.noise, drawn.noise)
    assert not torch.equal(other.timesteps, drawn.timesteps)


def test_what_is_trained_on_images_does_not_move_with_dropout_or_latents() -> None:
    plain = draws(3, torch.arange(4), Objective(), (1, 8, 8), device="cpu")
    more = drawn_for(torch.arange(4), Objective(conditioning_dropout=0.9), (1, 8, 8), seed=3)
    assert torch.equal(plain.noise, more.noise)
    assert torch.equal(plain.timesteps, more.timesteps)
    assert plain.kept.all()
    assert plain.latent_noise is None


def test_draws_have_their_distributions() -> None:
    objective = Objective(num_train_timesteps=10, timestep_sampling="uniform", conditioning_dropout=0.25)
    drawn = drawn_for(torch.arange(4_000), objective, (1, 4, 4))
    assert drawn.latent_noise is not None
    for noise in (drawn.noise, drawn.latent_noise):
        assert abs(float(noise.mean())) < 0.02
        assert float(noise.std()) == pytest.approx(1, abs=0.02)
        assert len(noise.flatten(1).unique(dim=0)) == 4_000
    assert drawn.timesteps.bincount(minlength=10).tolist() == pytest.approx([400] * 10, abs=90)
    assert float(drawn.kept.float().mean()) == pytest.approx(0.75, abs=0.03)
    assert float(torch.corrcoef(torch.stack([drawn.timesteps, drawn.kept]).float())[0, 1]) == pytest.approx(0, abs=0.08)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "flow"])
def test_timesteps_are_logit_normal(prediction_type: PredictionType) -> None:
    objective = Objective(prediction_type=prediction_type)
    timesteps = drawn_for(torch.arange(4_000), objective, (1, 1, 1)).timesteps.double()
    fractions = (timesteps if prediction_type == "flow" else timesteps + 0.5) / 1_000
    assert 0 < float(fractions.min()) < float(fractions.max()) < 1
    logit = (fractions / (1 - fractions)).log()
    assert float(logit.mean()) == pytest.approx(0, abs=0.05)
    assert float(logit.std()) == pytest.approx(1, abs=0.04)
    assert float((logit.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.025)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_timesteps_of_other_predictions_are_uniform(prediction_type: PredictionType) -> None:
    drawn = drawn_for(
        torch.arange(4_000), Objective(prediction_type=prediction_type, num_train_timesteps=10), (1, 1, 1)
    )
    assert drawn.timesteps.bincount(minlength=10).tolist() == pytest.approx([400] * 10, abs=90)


@pytest.mark.parametrize("count", [2, 3, 1_000, 2**31])
def test_the_words_of_a_timestep_are_divided_evenly(count: int) -> None:
    objective = Objective(num_train_timesteps=count, timestep_sampling="uniform")
    first = [0, 1, count // 2, count - 1]
    lowest = [-(-timestep * 2**32 // count) for timestep in first]  # the lowest word of each timestep
    highest = [word - 1 for word in lowest[1:]] + [2**32 - 1]
    words = torch.tensor([lowest, highest]).unsqueeze(2).expand(-1, -1, 2)
    assert objective.timesteps_from(words[0]).tolist() == first
    assert objective.timesteps_from(words[1]).tolist() == [*(timestep - 1 for timestep in first[1:]), count - 1]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ("logit_normal", [1_000 / (1 + 2**-9.609), 1_000 / (1 + 2**9.609), 500]),
        ("uniform", [500 / 2**23, 500 / 2**23, 1_000 - 500 / 2**23]),
    ],
)
def test_times_of_a_flow_never_reach_the_ends(sampling: TimestepSampling, expected: list[float]) -> None:
    ends = torch.tensor([[0, 0], [0, 2**31], [2**32 - 1, 0]])
    times = Objective(prediction_type="flow", timestep_sampling=sampling).timesteps_from(ends)
    assert times.dtype == torch.float32
    assert times.tolist() == pytest.approx(expected, rel=1e-3)
    assert ((times > 0) & (times < 1_000)).all()


def test_a_batch_goes_to_its_own_device_without_a_copy() -> None:
    batch = batch_of(3, 4)
    moved = batch.to("cpu")
    assert len(moved) == 2
    assert_same(moved, batch)
    before = tensors_of(batch)
    assert all(value is before[name] for name, value in tensors_of(moved).items())


def test_a_batch_goes_to_another_device_with_its_draws() -> None:
    moved = batch_of(3, 4).to("meta")
    assert {value.device.type for value in tensors_of(moved).values()} == {"meta"}


@pytest.mark.parametrize(
    ("samples", "size", "sizes"),
    [(7, 3, [3, 2, 2]), (8, 8, [8]), (8, 100, [8]), (3, 1, [1, 1, 1]), (9, 8, [5, 4])],
)
def test_a_split_batch_has_parts_of_equal_sizes(samples: int, size: int, sizes: list[int]) -> None:
    batch = batch_of(*range(samples))
    parts = batch.split(size)
    assert [len(part) for part in parts] == sizes
    assert_same(TrainBatch.joined(parts), batch)
    first = 0
    for part in parts:
        assert_same(part, batch_of(*range(first, first + len(part))))
        first += len(part)


def test_joined_batches_are_sorted_by_number() -> None:
    assert_same(TrainBatch.joined([batch_of(9, 2**40, 1), batch_of(4), batch_of(0, 7)]), batch_of(0, 1, 4, 7, 9, 2**40))
    plain = TrainBatch.joined([TrainBatch(torch.tensor([2, 1]), torch.zeros(2, 4, 4, dtype=torch.uint8))] * 2)
    assert plain.numbers.tolist() == [1, 1, 2, 2]
    assert (plain.encodings, plain.latents, plain.drawn) == (None, None, None)
