"""Metrics and their intervals on items with known distributions."""

import numpy as np
import numpy.typing as npt
import pytest

from audiodiff_core.evaluation import Gathered, Items, compare, evaluate_images, real_to_real, statistics_of
from audiodiff_core.evaluation.comparison import RESAMPLES, resampled
from audiodiff_core.evaluation.features import logmel_stats
from audiodiff_core.evaluation.frechet import FeatureStatistics, frechet_distance


def _tracks(count: int, per_track: int) -> list[str]:
    return [f"track {number}" for number in range(count) for _ in range(per_track)]


def _items(generator: np.random.Generator, tracks: int, per_track: int, shift: float = 0.0) -> Items:
    """Return items scattered around their tracks, which are scattered around `shift`."""
    centres = generator.normal(size=(tracks, 1, 4)) + shift
    return Items(
        (centres + 0.3 * generator.normal(size=(tracks, per_track, 4))).reshape(-1, 4), _tracks(tracks, per_track)
    )


def _side(generator: np.random.Generator, tracks: int, per_track: int, shift: float = 0.0) -> Gathered:
    return _whole(_items(generator, tracks, per_track, shift))


def _whole(items: Items) -> Gathered:
    """Return a side whose sample holds all items."""
    return Gathered(FeatureStatistics.of(items.features), len(set(items.tracks)), items)


def test_sets_of_a_kind_and_of_another() -> None:
    generator = np.random.default_rng(0)
    reference = _side(generator, 60, 3)
    same, other = (compare(reference, _side(generator, 150, 1, shift)) for shift in (0.0, 2.0))
    assert same["frechet"] < 0.4 < 10 < other["frechet"]
    assert same["kernel_low"] < 0 < same["kernel_high"] < other["kernel_low"]
    assert same["coverage"] > 0.8 > 0.2 > other["coverage"]
    assert other["density"] < 0.2 < same["density"]
    assert 0.3 < same["nearer_share"] < 0.7
    for figures in (same, other):
        assert all(isinstance(value, int | float) for value in figures.values())
        for name in ("frechet", "kernel", "density", "coverage"):
            assert figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"]
        assert figures["frechet_low"] >= 0
        assert figures["coverage_high"] <= 1
        assert (
            figures["n_candidate"],
            figures["n_reference"],
            figures["n_reference_tracks"],
            figures["n_features"],
        ) == (150, 180, 60, 4)
    assert same["frechet_real_to_real"] > 0
    assert compare(reference, reference)["frechet"] == pytest.approx(0, abs=1e-9)


def test_the_same_seed_gives_the_same_figures() -> None:
    generator = np.random.default_rng(1)
    reference, candidate = _side(generator, 10, 3), _side(generator, 20, 1)
    assert compare(reference, candidate) == compare(reference, candidate)
    assert compare(reference, candidate, seed=1)["kernel_high"] != compare(reference, candidate)["kernel_high"]


def test_copies_of_training_items_are_seen() -> None:
    generator = np.random.default_rng(2)
    reference = _side(generator, 50, 2)
    fresh, held_out = _side(generator, 40, 1), _side(generator, 40, 1)
    copies = _whole(Items(reference.sample.features[:40] + 1e-3, _tracks(40, 1)))
    assert compare(reference, copies, held_out)["nearer_share"] > 0.95
    assert compare(reference, copies)["nearer_share"] > 0.95
    assert 0.3 < compare(reference, fresh, held_out)["nearer_share"] < 0.7
    assert compare(reference, copies)["nearest_candidate"] == pytest.approx(2e-3, abs=1e-9)
    assert compare(reference, fresh, held_out)["n_held_out"] == 40


@pytest.mark.soak_short
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Check the share of intervals of the kernel distance that contain the true value.

    The estimate is unbiased. Between Gaussians of one feature, the true value follows from moments:
    E (xy + 1)^3 = 1 + 3 Ex Ey + 3 Ex^2 Ey^2 + Ex^3 Ey^3.
    """
    shift, held = 1.0, 0
    one_moments = np.array([1.0, 0, 1, 0])
    other_moments = np.array([1.0, shift, shift**2 + 1, shift**3 + 3 * shift])
    binomial = np.diag([1, 3, 3, 1])
    truth = sum(
        sign * one @ binomial @ other
        for sign, one, other in (
            (1, one_moments, one_moments),
            (1, other_moments, other_moments),
            (-2, one_moments, other_moments),
        )
    )
    generator = np.random.default_rng(3)
    for _ in range(60):
        one = _whole(Items(generator.normal(size=(60, 1)), _tracks(60, 1)))
        figures = compare(one, _whole(Items(generator.normal(size=(60, 1)) + shift, _tracks(60, 1))))
        held += figures["kernel_low"] <= truth <= figures["kernel_high"]
    assert 49 <= held <= 60


def test_tracks_are_drawn_whole() -> None:
    numbers = np.array([0, 0, 0, 1, 2, 2])
    weights = resampled(numbers, np.random.default_rng(4))
    assert weights.shape == (6, RESAMPLES)
    np.testing.assert_array_equal(weights[0], weights[2])
    np.testing.assert_array_equal(weights[4], weights[5])
    np.testing.assert_array_equal(weights[[0, 3, 4]].sum(axis=0), np.full(RESAMPLES, 3))
    assert weights.mean() == pytest.approx(1, abs=0.2)


def test_slices_of_a_track_count_as_one_in_intervals() -> None:
    generator = np.random.default_rng(5)
    few_tracks = _items(generator, 8, 1)
    repeated = Items(few_tracks.features.repeat(10, axis=0), [track for track in few_tracks.tracks for _ in range(10)])
    candidate = _side(generator, 200, 1)
    alone = Items(repeated.features, [str(number) for number in range(80)])
    wide, narrow = (
        figures["kernel_high"] - figures["kernel"]
        for figures in (compare(_whole(items), candidate) for items in (repeated, alone))
    )
    assert wide > 1.5 * narrow


def test_one_track_has_no_halves_and_no_other() -> None:
    generator = np.random.default_rng(6)
    reference, candidate = (
        Items(generator.normal(size=(30, 3)), ["only"] * 30),
        Items(generator.normal(size=(5, 3)), _tracks(5, 1)),
    )
    figures = compare(_whole(reference), _whole(candidate))
    assert not {"frechet_real_to_real", "kernel_real_to_real", "nearest_real", "nearer_share"} & figures.keys()
    assert figures["frechet_low"] < figures["frechet_high"]
    assert real_to_real(_items(generator, 2, 4), generator)["frechet_real_to_real"] > 0
    assert real_to_real(_items(generator, 2, 1), generator) == {}


def test_frechet_is_of_all_items_and_the_rest_of_samples() -> None:
    generator = np.random.default_rng(7)
    items = [_items(generator, 20, 2), _items(generator, 50, 1), _items(generator, 30, 1)]
    samples = [side.at(np.arange(0, len(side), 2)) for side in items]
    reference, candidate, held_out = (
        Gathered(FeatureStatistics.of(side.features), len(set(side.tracks)), sample)
        for side, sample in zip(items, samples, strict=True)
    )
    figures = compare(reference, candidate, held_out)
    of_samples = compare(_whole(samples[0]), _whole(samples[1]), _whole(samples[2]))
    assert figures["frechet"] == frechet_distance(candidate.statistics, reference.statistics)
    assert figures["frechet_high"] - figures["frechet"] == pytest.approx(
        of_samples["frechet_high"] - of_samples["frechet"]
    )
    different = {name for name in figures if figures[name] != of_samples[name]}
    assert different - {"frechet_low"} == {"frechet", "frechet_high", "n_reference", "n_candidate", "n_held_out"}
    assert (figures["n_reference"], figures["n_reference_tracks"], figures["n_candidate"], figures["n_held_out"]) == (
        40,
        20,
        50,
        30,
    )
    assert (figures["n_paired_reference"], figures["n_paired_reference_tracks"]) == (20, 20)
    assert (figures["n_paired_candidate"], figures["n_paired_held_out"]) == (25, 15)


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(8).integers(0, 256, (40, 16, 12), dtype=np.uint8)


def test_images_beside_training(images: npt.NDArray[np.uint8]) -> None:
    statistics = statistics_of([images[:3], images[3:20]])
    figures = evaluate_images(images[20:], statistics)
    expected = frechet_distance(
        FeatureStatistics.of(logmel_stats(images[20:])), FeatureStatistics.of(logmel_stats(images[:20]))
    )
    assert figures == {"frechet": pytest.approx(expected), "n_candidate": 20, "n_reference": 20}
    with pytest.raises(ValueError, match="no images"):
        statistics_of([])


@pytest.mark.parametrize("candidates", [2, 3, 50])
def test_figures_of_few_items_are_finite_or_left_out(candidates: int) -> None:
    generator = np.random.default_rng(5)
    features = generator.normal(size=(9, 4))
    figures = compare(_whole(Items(features, ["short", *["long"] * 8])), _side(generator, candidates, 1))
    assert np.isfinite(list(figures.values())).all()
    assert {"frechet", "frechet_low", "kernel"} <= figures.keys()
