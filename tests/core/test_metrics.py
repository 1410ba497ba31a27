"""Statistics merge exactly; the Fréchet distance and the spread are what their formulas say."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg

from audiodiff_core.metrics import FeatureStatistics, frechet_distance, logmel_stats, spread


def gaussian(mean: list[float], covariance: npt.ArrayLike, count: int = 100) -> FeatureStatistics:
    """Statistics whose mean and covariance are exactly these."""
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
    one, other = (FeatureStatistics.of(generator.normal(size=(30, 5)) @ generator.normal(size=(5, 5))) for _ in range(2))
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
    image[0, 4:6, ::2] = 255  # group 2 flickers between nothing and full
    features = logmel_stats(image)[0]
    assert (features[2], features[16 + 2], features[32 + 2]) == (0.5, 0.5, 1.0)
    assert np.count_nonzero(features) == 3


def test_logmel_stats_needs_whole_groups() -> None:
    with pytest.raises(ValueError, match=r"20 mel bands.*multiple of 16"):
        logmel_stats(np.zeros((1, 20, 8), np.uint8))
