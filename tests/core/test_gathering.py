"""Gathering of a side in parts.

The statistics and the sample do not depend on the parts or on their order.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from audiodiff_core.evaluation import Gathered, Gathering, Items, Part, closest, compare, rank, real_to_real
from audiodiff_core.evaluation.frechet import FeatureStatistics, frechet_distance

TRACKS = [f"track {number}" for number in range(25) for _ in range(4 + number % 3)]
NUMBERS = [TRACKS[:place].count(track) for place, track in enumerate(TRACKS)]
COUNT = len(TRACKS)
RANKS = np.array([rank(track, number) for track, number in zip(TRACKS, NUMBERS, strict=True)], np.uint64)
PARTITIONS = {
    "one": [],
    "two": [60],
    "a track each": [place for place in range(1, COUNT) if NUMBERS[place] == 0],
    "uneven, some without items": [0, 4, 4, 9, 60, 75, 75],
}


def _features(seed: int = 0) -> npt.NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(COUNT, 6)) * [1, 10, 0.1, 3, 1, 1] + 5


def _parts(features: npt.NDArray[np.float64], cuts: Sequence[int], at_most: int) -> list[Part]:
    edges = [0, *cuts, COUNT]
    return [
        Part.of(Items(features[start:stop], TRACKS[start:stop]), RANKS[start:stop], at_most)
        for start, stop in pairwise(edges)
    ]


def _gathered(parts: list[Part], at_most: int, order: Sequence[int] | None = None) -> Gathered:
    gathering = Gathering(at_most)
    for number in order or range(len(parts)):
        gathering.add(number, parts[number])
        assert gathering.rows_held <= 2 * at_most
    gathered = gathering.gathered()
    assert gathered is not None
    return gathered


@pytest.mark.parametrize("at_most", [10, 1_000])
@pytest.mark.parametrize("cuts", PARTITIONS.values(), ids=PARTITIONS)
def test_statistics_of_any_partition_are_those_of_all_items(cuts: list[int], at_most: int) -> None:
    """Check statistics to the rounding error of sums.

    Sums of n float64 terms in two orders differ by at most about n times 2^-53 of the sum of the absolute terms, here
    1e-14.
    """
    features = _features()
    gathered = _gathered(_parts(features, cuts, at_most), at_most)
    assert (gathered.statistics.count, gathered.tracks) == (COUNT, 25)
    np.testing.assert_allclose(gathered.statistics.mean, features.mean(axis=0), rtol=1e-13)
    sizes = np.sqrt(np.outer(features.var(axis=0), features.var(axis=0)))
    assert (abs(gathered.statistics.covariance - np.cov(features.T)) / sizes).max() < 1e-12


@pytest.mark.parametrize("cuts", PARTITIONS.values(), ids=PARTITIONS)
def test_frechet_distances_of_any_partition_agree(cuts: list[int]) -> None:
    """Check distances to the rounding error of covariances.

    With full rank, an error of 1e-14 in the covariances causes an error of similar size. The covariance of n <= d
    items has eigenvalues of 0, which are computed as about 1e-16 of the largest eigenvalue. The distance contains the
    root of each eigenvalue, so its error is up to about d times 1e-8 of the largest variance, for any order of the
    sums.
    """
    one, other = _features(), _features(1) + 0.5
    at_once = frechet_distance(FeatureStatistics.of(one), FeatureStatistics.of(other))
    merged = [_gathered(_parts(features, cuts, 10), 10).statistics for features in (one, other)]
    assert frechet_distance(*merged) == pytest.approx(at_once, rel=1e-9)
    wide = np.random.default_rng(2).normal(size=(2, COUNT, COUNT + 9))
    merged = [_gathered(_parts(features, cuts, 10), 10).statistics for features in wide]
    at_once = frechet_distance(*(FeatureStatistics.of(features) for features in wide))
    assert frechet_distance(*merged) == pytest.approx(at_once, abs=COUNT * 1e-8 * wide.var(axis=1).max())


@pytest.mark.parametrize("cuts", PARTITIONS.values(), ids=PARTITIONS)
@pytest.mark.parametrize("at_most", [10, COUNT - 1])
def test_the_sample_does_not_depend_on_the_parts(cuts: list[int], at_most: int) -> None:
    features = _features()
    expected = sorted(sorted(range(COUNT), key=lambda row: RANKS[row])[:at_most])
    sample = _gathered(_parts(features, cuts, at_most), at_most).sample
    np.testing.assert_array_equal(sample.features, features[expected])
    assert sample.tracks == [TRACKS[row] for row in expected]


@pytest.mark.parametrize("at_most", [10, 1_000])
def test_the_order_of_parts_changes_no_bit(at_most: int) -> None:
    parts = _parts(_features(), PARTITIONS["a track each"], at_most)
    expected = _gathered(parts, at_most)
    generator = np.random.default_rng(3)
    for order in ([*range(len(parts))][::-1], *(generator.permutation(len(parts)).tolist() for _ in range(5))):
        gathered = _gathered(parts, at_most, order)
        np.testing.assert_array_equal(gathered.statistics.mean, expected.statistics.mean)
        np.testing.assert_array_equal(gathered.statistics.moments, expected.statistics.moments)
        np.testing.assert_array_equal(gathered.sample.features, expected.sample.features)
        assert gathered.sample.tracks == expected.sample.tracks


@pytest.mark.parametrize("at_most", [COUNT, 1_000])
def test_a_sample_that_holds_all_items_gives_the_figures_of_all(at_most: int) -> None:
    sides = _features(), _features(1) + 0.2, _features(2)
    gathered = [_gathered(_parts(features, PARTITIONS["a track each"], at_most), at_most) for features in sides]
    direct = [Gathered(FeatureStatistics.of(features), 25, Items(features, TRACKS)) for features in sides]
    figures, expected = (
        compare(reference, candidate, held_out) for reference, candidate, held_out in (gathered, direct)
    )
    of_statistics = {"frechet", "frechet_low", "frechet_high"}
    assert {name: figures[name] for name in figures.keys() - of_statistics} == {
        name: expected[name] for name in expected.keys() - of_statistics
    }
    assert figures == pytest.approx(expected, rel=1e-9)
    assert closest(gathered[0].sample, gathered[1].sample, 5) == closest(direct[0].sample, direct[1].sample, 5)


def test_all_items_of_a_track_in_the_sample_are_on_one_side_of_a_split() -> None:
    """Check that a split keeps each track whole.

    The items of a track are equal. Halves made of tracks are far apart, and halves made of items are not.
    """
    features = np.random.default_rng(4).normal(size=(25, 6))[[int(track.split()[1]) for track in TRACKS]]
    sample = _gathered(_parts(features, [], 60), 60).sample
    alone = Items(sample.features, [str(row) for row in range(60)])
    of_tracks, of_items = (
        real_to_real(items, np.random.default_rng(0))["kernel_real_to_real"] for items in (sample, alone)
    )
    assert of_tracks > of_items + 0.1


def test_every_item_is_as_likely_in_a_sample_whatever_its_track() -> None:
    names = ["long", *(f"short {number}" for number in range(1_000))]
    ranks = np.array(
        [*(rank("long", number) for number in range(1_000)), *(rank(name, 0) for name in names[1:])], np.uint64
    )
    of_long = int((np.argsort(ranks)[:400] < 1_000).sum())
    assert abs(of_long - 200) < 4 * np.sqrt(400 * 0.25 * (1 - 400 / 2_000))
    assert len(set(ranks.tolist())) == 2_000


def test_nothing_is_gathered_of_parts_without_items() -> None:
    gathering = Gathering(10)
    for number in range(3):
        gathering.add(number, Part.of(Items(np.empty((0, 0)), []), np.empty(0, np.uint64), 10))
    assert gathering.gathered() is None
