"""What is said of a set of generated items beside real ones: distances with their intervals, and what real audio itself scores.

Items of one track are alike, so tracks, not items, are drawn in resamples and in splits of the real items. Generated items each
stand for themselves. Everything is drawn from one seed: the same items give the same figures.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from audiodiff_core.mel import Images
from audiodiff_core.metrics import (
    Features,
    FeatureStatistics,
    Weights,
    density_coverage,
    density_coverages,
    frechet_distance,
    kernel_distance,
    kernel_distances,
    logmel_stats,
    nearer_share,
    nearest_distances,
    nearest_other_distances,
)

ITEMS_AT_LEAST = 128  # of generated items, for a Fréchet distance that is worth stating
PAIRED_AT_MOST = 10_000  # items of a side that metrics of pairs and intervals look at, drawn from all
RESAMPLES = 100
SPLITS = 10
NORMAL_95 = 1.96  # standard deviations


@dataclass(frozen=True)
class Items:
    """Features (n, d) and, of each item, the name of the track that it is from."""

    features: Features
    tracks: Sequence[str]

    def __post_init__(self) -> None:
        assert len(self.features) == len(self.tracks)

    def __len__(self) -> int:
        return len(self.tracks)

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """The track of each item (n,), counted from 0 in the order of their names."""
        return np.unique(np.asarray(self.tracks), return_inverse=True)[1]

    def drawn(self, at_most: int, generator: np.random.Generator) -> "Items":
        """These items or, where there are more, `at_most` of them."""
        if len(self) <= at_most:
            return self
        rows = np.sort(generator.choice(len(self), at_most, replace=False))
        return Items(self.features[rows], [self.tracks[row] for row in rows])


def statistics_of(batches: Iterable[Images], embed: Callable[[Images], Features] = logmel_stats) -> FeatureStatistics:
    """Statistics of images that come in batches (n, y_res, x_res): what `evaluate_images` compares with. Raises ValueError for no images."""
    total = None
    for images in batches:
        part = FeatureStatistics.of(embed(images))
        total = part if total is None else total + part
    if total is None:
        raise ValueError("no images: statistics need some")
    return total


def evaluate_images(images: Images, reference: FeatureStatistics, embed: Callable[[Images], Features] = logmel_stats) -> dict[str, float]:
    """The Fréchet distance of images (n, y_res, x_res) to statistics of real ones, with both sample sizes: for use beside training.

    The images are compared as they leave the network, not as audio that was made of them and analysed again.
    """
    return {
        "frechet": frechet_distance(FeatureStatistics.of(embed(images)), reference),
        "n_candidate": len(images),
        "n_reference": reference.count,
    }


def compare(reference: Items, candidate: Items, held_out: Items | None = None, seed: int = 0) -> dict[str, float]:
    """Everything that is said of `candidate` items beside `reference` ones, by name.

    frechet, kernel, density, coverage   the metrics of `metrics.py`; NAME_low and NAME_high bound the 95 % interval that resampling gives (absent
                                         for kernel where most resamples hold a single item of a side)
    frechet_real_to_real, kernel_...     mean distance of two halves of the reference's tracks: what real audio scores; absent for one track
    nearest_candidate                    median distance of a candidate to the nearest reference item
    nearest_real                         the same of held-out items or, where there are none, of each reference item to those of other tracks
    nearer_share                         how often the first is smaller than the second: 0.5 expected, near 1 where training items are copied
    n_...                                sample sizes: all items count for `frechet`, `n_paired_...` of each side for the rest
    """
    generator = np.random.default_rng(seed)
    few, few_candidates = (items.drawn(PAIRED_AT_MOST, generator) for items in (reference, candidate))
    density, coverage = density_coverage(few.features, few_candidates.features)
    figures: dict[str, float] = {
        "frechet": frechet_distance(FeatureStatistics.of(candidate.features), FeatureStatistics.of(reference.features)),
        "kernel": kernel_distance(few_candidates.features, few.features),
        "density": density,
        "coverage": coverage,
    }
    for name, spread in _standard_errors(few, few_candidates, generator).items():
        figures[f"{name}_low"] = figures[name] - NORMAL_95 * spread
        figures[f"{name}_high"] = figures[name] + NORMAL_95 * spread
    for name in ("frechet", "density", "coverage"):
        figures[f"{name}_low"] = max(0.0, figures[f"{name}_low"])
    figures["coverage_high"] = min(1.0, figures["coverage_high"])
    return {**figures, **real_to_real(few, generator), **_copying(few, few_candidates, held_out), **_sizes(reference, candidate, held_out, few, few_candidates)}


def closest(reference: Items, candidate: Items, count: int) -> list[tuple[str, str, float]]:
    """The `count` candidate items that lie nearest to a reference item: names of both and their distance."""
    found, which = nearest_distances(candidate.features, reference.features)
    return [(candidate.tracks[row], reference.tracks[which[row]], float(found[row])) for row in np.argsort(found, kind="stable")[:count]]


def real_to_real(real: Items, generator: np.random.Generator) -> dict[str, float]:
    """Mean distances between halves of the tracks, over several random splits; nothing where there are not two tracks to split.

    Halves are smaller than the whole and small sets lie further apart, so this is what real audio scores at about half the sample size.
    """
    numbers = real.numbers
    tracks = int(numbers.max()) + 1
    found = []
    for _ in range(SPLITS):
        first = np.isin(numbers, generator.permutation(tracks)[: tracks // 2])
        one, other = real.features[first], real.features[~first]
        if min(len(one), len(other)) > 1:
            found.append((frechet_distance(FeatureStatistics.of(one), FeatureStatistics.of(other)), kernel_distance(one, other)))
    if not found:
        return {}
    frechet, kernel = np.mean(found, axis=0)
    return {"frechet_real_to_real": float(frechet), "kernel_real_to_real": float(kernel)}


def _standard_errors(reference: Items, candidate: Items, generator: np.random.Generator) -> dict[str, float]:
    """How much each metric varies between resamples of both sides.

    Coverage and density vary with the candidates alone: a resample's repeated reference items would have balls of no size.
    """
    numbers = reference.numbers if len(set(reference.tracks)) > 1 else np.arange(len(reference))
    of_reference, of_candidate = resampled(numbers, generator), resampled(np.arange(len(candidate)), generator)
    frechet = np.array(
        [
            frechet_distance(FeatureStatistics.of(candidate.features, mine), FeatureStatistics.of(reference.features, theirs))
            for mine, theirs in zip(of_candidate.T, of_reference.T, strict=True)
        ]
    )
    density, coverage = density_coverages(reference.features, candidate.features, of_candidate)
    kernel = kernel_distances(candidate.features, reference.features, of_candidate, of_reference)
    values = {"frechet": frechet, "kernel": kernel, "density": density, "coverage": coverage}
    finite = {name: resamples[np.isfinite(resamples)] for name, resamples in values.items()}  # a resample of one item alone has no kernel distance
    return {name: float(np.std(resamples, ddof=1)) for name, resamples in finite.items() if len(resamples) > RESAMPLES // 2}


def resampled(tracks: npt.NDArray[np.int64], generator: np.random.Generator) -> Weights:
    """How often each item counts (n, RESAMPLES) where as many tracks as there are are drawn with replacement; `tracks` (n,) counted from 0."""
    count = int(tracks.max()) + 1
    draws = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    weights: Weights = draws.T[tracks].astype(np.float64)
    return weights


def _copying(reference: Items, candidate: Items, held_out: Items | None) -> dict[str, float]:
    nearest, _ = nearest_distances(candidate.features, reference.features)
    figures = {"nearest_candidate": float(np.median(nearest))}
    if held_out is not None:
        real, _ = nearest_distances(held_out.features, reference.features)
    elif len(set(reference.tracks)) > 1:
        real = nearest_other_distances(reference.features, reference.numbers)
    else:
        return figures
    return {**figures, "nearest_real": float(np.median(real)), "nearer_share": nearer_share(nearest, real)}


def _sizes(reference: Items, candidate: Items, held_out: Items | None, few: Items, few_candidates: Items) -> dict[str, float]:
    return {
        "n_candidate": len(candidate),
        "n_reference": len(reference),
        "n_reference_tracks": len(set(reference.tracks)),
        "n_held_out": 0 if held_out is None else len(held_out),
        "n_paired_candidate": len(few_candidates),
        "n_paired_reference": len(few),
        "n_features": reference.features.shape[1],
    }
