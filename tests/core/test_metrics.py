"""Merged statistics, distances, density, coverage and spread against their formulas."""

from itertools import combinations, permutations, product

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg

from audiodiff_core.evaluation import pairs
from audiodiff_core.evaluation.copies import nearer_share, nearest_distances, nearest_other_distances
from audiodiff_core.evaluation.coverage import density_coverage, density_coverages
from audiodiff_core.evaluation.features import logmel_stats, spread
from audiodiff_core.evaluation.frechet import FeatureStatistics, frechet_distance
from audiodiff_core.evaluation.kernel import kernel_distance, kernel_distances


def gaussian(mean: list[float], covariance: npt.ArrayLike, count: int = 100) -> FeatureStatistics:
    """Return statistics with exactly the given mean and covariance."""
    return FeatureStatistics(count, np.array(mean), np.asarray(covariance) * (count - 1))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_merged_statistics_are_the_whole_ones(order: list[int]) -> None:
    features = np.random.default_rng(0).normal(size=(50, 4)) * [1, 10, 0.1, 3] + 100
    parts = [features[:1], features[1:18], features[18:]]
    first, second, third = (FeatureStatistics.of(parts[index]) for index in order)
    for merged in ((first + second) + third, first + (second + third)):
        assert merged.count == 50
        np.testing.assert_allclose(merged.mean, features.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(merged.covariance, np.cov(features.T), rtol=1e-9)


def test_distance_to_itself_is_zero() -> None:
    statistics = FeatureStatistics.of(np.random.default_rng(0).normal(size=(200, 8)))
    assert frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-9)


def test_distance_of_known_gaussians() -> None:
    assert frechet_distance(gaussian([0], [[4]]), gaussian([3], [[25]])) == pytest.approx(9 + (2 - 5) ** 2)
    one, other = gaussian([0, 1], np.diag([1, 9])), gaussian([2, 1], np.diag([4, 16]), count=7)
    assert frechet_distance(one, other) == pytest.approx(4 + (1 - 2) ** 2 + (3 - 4) ** 2)
    assert frechet_distance(one, gaussian([0, 1], np.diag([1, 9]), count=7)) == pytest.approx(0, abs=1e-9)


def test_distance_of_gaussians_that_do_not_commute() -> None:
    generator = np.random.default_rng(1)
    one, other = (
        FeatureStatistics.of(generator.normal(size=(30, 5)) @ generator.normal(size=(5, 5))) for _ in range(2)
    )
    root = np.real(scipy.linalg.sqrtm(one.covariance @ other.covariance))
    expected = np.sum((one.mean - other.mean) ** 2) + np.trace(one.covariance + other.covariance - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected)
    assert frechet_distance(other, one) == pytest.approx(expected)


def test_distance_of_rank_deficient_statistics_is_real() -> None:
    generator = np.random.default_rng(2)
    one, other = (FeatureStatistics.of(generator.normal(size=(5, 48))) for _ in range(2))
    distance = frechet_distance(one, other)
    assert np.isfinite(distance)
    assert distance > 0
    assert frechet_distance(other, one) == pytest.approx(distance)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_one_item_has_no_distance() -> None:
    with pytest.raises(ValueError, match="1 items"):
        frechet_distance(FeatureStatistics.of(np.zeros((1, 3))), gaussian([0, 0, 0], np.eye(3)))


def test_spread_is_the_mean_over_all_pairs() -> None:
    images = np.random.default_rng(3).integers(0, 256, (7, 6, 5), dtype=np.uint8)
    pairs = [np.abs(one.astype(float) - other).mean() for one, other in combinations(images, 2)]
    assert spread(images) == pytest.approx(np.mean(pairs))
    assert spread(np.repeat(images[:1], 4, axis=0)) == 0
    assert spread(np.stack([np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)])) == 255
    with pytest.raises(ValueError, match="1 images"):
        spread(images[:1])


def test_logmel_stats_shape_and_bounds() -> None:
    images = np.random.default_rng(4).integers(0, 256, (5, 64, 20), dtype=np.uint8)
    images[1], images[2] = 0, 255
    features = logmel_stats(images)
    assert features.shape == (5, 48)
    assert features.min() >= 0
    assert features[:, :16].max() <= 1
    assert features[:, 16:32].max() <= 0.5
    assert features[:, 32:].max() <= 1
    assert not features[1].any()
    assert features[2].tolist() == [1.0] * 16 + [0.0] * 32
    np.testing.assert_array_equal(logmel_stats(images[3:4])[0], features[3])


def test_logmel_stats_tells_timbre_dynamics_and_rhythm() -> None:
    image = np.zeros((1, 32, 8), np.uint8)
    image[0, 4:6, ::2] = 255  # group 2 alternates between 0 and full scale
    features = logmel_stats(image)[0]
    assert (features[2], features[16 + 2], features[32 + 2]) == (0.5, 0.5, 1.0)
    assert np.count_nonzero(features) == 3


def test_logmel_stats_needs_whole_groups() -> None:
    with pytest.raises(ValueError, match=r"20 mel bands.*multiple of 16"):
        logmel_stats(np.zeros((1, 20, 8), np.uint8))


@pytest.fixture(params=[4_000_000, 7])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute pairs all at once, and in blocks of one or two rows."""
    monkeypatch.setattr(pairs, "BLOCK_VALUES", request.param)


def test_weighted_statistics_are_those_of_repeated_items() -> None:
    generator = np.random.default_rng(5)
    features, weights = generator.normal(size=(6, 3)), np.array([2.0, 0, 1, 3, 0, 1])
    weighted, repeated = (
        FeatureStatistics.of(features, weights),
        FeatureStatistics.of(features.repeat(weights.astype(int), axis=0)),
    )
    assert weighted.count == repeated.count == 7
    np.testing.assert_allclose(weighted.mean, repeated.mean)
    np.testing.assert_allclose(weighted.covariance, repeated.covariance)


def _kernel(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    return float((one @ other / len(one) + 1) ** 3)


@pytest.mark.usefixtures("blocks")
def test_kernel_distance_is_the_unbiased_estimate() -> None:
    generator = np.random.default_rng(6)
    one, other = generator.normal(size=(5, 3)), generator.normal(size=(7, 3)) + 0.5
    within_one = np.mean([_kernel(a, b) for a, b in permutations(one, 2)])
    within_other = np.mean([_kernel(a, b) for a, b in permutations(other, 2)])
    cross = np.mean([_kernel(a, b) for a, b in product(one, other)])
    assert kernel_distance(one, other) == pytest.approx(within_one + within_other - 2 * cross)
    assert kernel_distance(other, one) == pytest.approx(kernel_distance(one, other))
    weights = np.array([[2.0, 1], [0, 1], [1, 1], [1, 1], [1, 1]])
    pairs = [(a, b) for a, b in permutations(range(5), 2)]
    within = np.average(
        [_kernel(one[a], one[b]) for a, b in pairs], weights=[weights[a, 0] * weights[b, 0] for a, b in pairs]
    )
    weighted_cross = np.average([_kernel(a, b) for a, b in product(one, other)], weights=weights[:, 0].repeat(7))
    assert kernel_distances(one, other, weights, np.ones((7, 2))) == pytest.approx(
        [within + within_other - 2 * weighted_cross, within_one + within_other - 2 * cross]
    )


def test_kernel_distance_of_points_in_closed_form() -> None:
    zeros, ones = np.zeros((4, 2)), np.ones((3, 2))
    assert kernel_distance(zeros, ones) == pytest.approx(1 + 8 - 2 * 1)
    assert kernel_distance(ones, ones[:2]) == pytest.approx(0)
    with pytest.raises(ValueError, match="1 and 3 items: a kernel distance needs at least 2"):
        kernel_distance(zeros[:1], ones)


def test_kernel_distance_of_sets_of_a_kind_is_zero_on_average() -> None:
    generator = np.random.default_rng(7)
    distances = [kernel_distance(generator.normal(size=(6, 4)), generator.normal(size=(9, 4))) for _ in range(3_000)]
    assert abs(np.mean(distances)) < 4 * np.std(distances) / np.sqrt(len(distances))
    assert min(distances) < 0 < max(distances)
    biased = np.mean(
        [frechet_distance(*(FeatureStatistics.of(generator.normal(size=(9, 4))) for _ in range(2))) for _ in range(100)]
    )
    assert biased > 1, "which the Fréchet distance is not"


@pytest.mark.usefixtures("blocks")
def test_density_and_coverage_by_hand() -> None:
    reference = np.array([[0.0], [1], [3], [7]])  # with one neighbor, balls of radius 1, 1, 2, 4
    candidate = np.array([[0.5], [2.5], [20]])  # in balls 1 and 2, in ball 3, in no ball
    assert density_coverage(reference, candidate, 1) == pytest.approx(((2 + 1 + 0) / 3, 3 / 4))
    density, coverage = density_coverages(reference, candidate, np.array([[3.0, 0], [0, 1], [0, 2]]), 1)
    assert density == pytest.approx([2, 1 / 3])
    assert coverage == pytest.approx([2 / 4, 1 / 4])


def test_density_and_coverage_of_sets_of_a_kind() -> None:
    generator = np.random.default_rng(8)
    n, k = 40, 5
    figures = np.array(
        [density_coverage(generator.normal(size=(n, 3)), generator.normal(size=(n, 3)), k) for _ in range(300)]
    )
    places = np.arange(k)
    # An item is not covered if the k nearest of the 2n - 1 other items are all among the n - 1 real items.
    expected = 1 - np.prod((n - 1 - places) / (2 * n - 1 - places))
    error = 4 * figures.std(axis=0) / np.sqrt(len(figures))
    assert abs(figures[:, 0].mean() - 1) < error[0]
    assert abs(figures[:, 1].mean() - expected) < error[1]


def test_density_and_coverage_at_the_edges() -> None:
    generator = np.random.default_rng(9)
    reference = generator.normal(size=(20, 4))
    assert density_coverage(reference, reference)[1] == 1
    assert density_coverage(reference, reference + 100) == (0, 0)
    assert density_coverage(np.zeros((10, 4)), np.zeros((3, 4))) == pytest.approx((10 / 5, 1))
    with pytest.raises(ValueError, match="5 reference and 20 candidate items"):
        density_coverage(reference[:5], reference)


@pytest.mark.usefixtures("blocks")
def test_nearest_distances() -> None:
    generator = np.random.default_rng(10)
    items, among = generator.normal(size=(6, 3)), generator.normal(size=(9, 3))
    among[4] = items[2]
    distances, which = nearest_distances(items, among)
    every = np.sqrt(((items[:, np.newaxis] - among) ** 2).sum(axis=2))
    np.testing.assert_allclose(distances, every.min(axis=1))
    np.testing.assert_array_equal(which, every.argmin(axis=1))
    assert (distances[2], which[2]) == (0, 4)


@pytest.mark.usefixtures("blocks")
def test_nearest_of_other_tracks() -> None:
    items = np.array([[0.0], [1], [5], [7], [8]])
    np.testing.assert_array_equal(nearest_other_distances(items, np.array([0, 0, 1, 1, 2])), [5, 4, 3, 1, 1])
    assert np.isinf(nearest_other_distances(items, np.zeros(5, np.int64))).all()


def test_nearer_share_counts_pairs() -> None:
    generator = np.random.default_rng(11)
    one, other = generator.integers(0, 5, 30).astype(float), generator.integers(0, 6, 40).astype(float)
    expected = np.mean([(a < b) + (a == b) / 2 for a, b in product(one, other)])
    assert nearer_share(one, other) == pytest.approx(expected)
    assert nearer_share(other, one) == pytest.approx(1 - expected)
    assert nearer_share(np.zeros(3), np.ones(2)) == 1
    assert nearer_share(np.zeros(3), np.zeros(2)) == 0.5


def test_constant_features_have_no_distance() -> None:
    one = FeatureStatistics.of(np.full((5, 3), 0.25))
    assert frechet_distance(one, one) == 0
    assert frechet_distance(one, FeatureStatistics.of(np.full((9, 3), 0.75))) == pytest.approx(3 * 0.25)


def test_fewer_items_than_features_against_scipy() -> None:
    generator = np.random.default_rng(12)
    one, other = (FeatureStatistics.of(generator.normal(size=(count, 8))) for count in (5, 40))
    whole = other.covariance + 1e-9 * np.eye(8)
    root = np.real(scipy.linalg.sqrtm(whole @ one.covariance))
    expected = np.sum((one.mean - other.mean) ** 2) + np.trace(one.covariance + other.covariance - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-3)
