"""What is said of a set of generated items beside real ones: distances with their intervals, and what real audio itself scores.

Items of one track are alike, so tracks, not items, are drawn in resamples and in splits of the real items. Generated items each
stand for themselves. Everything is drawn from one seed: the same items give the same figures.

Fréchet distances of whole sides are of the statistics of all items. Everything else is of the samples (`gathering.py`): its time
grows with the product of the sides' sizes. A side of no more than `SAMPLED_AT_MOST` items is its own sample.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from audiodiff_core.evaluation.copies import nearer_share, nearest_distances, nearest_other_distances
from audiodiff_core.evaluation.coverage import density_coverage, density_coverages
from audiodiff_core.evaluation.features import Features, ItemWeights, logmel_stats
from audiodiff_core.evaluation.frechet import FeatureStatistics, frechet_distance
from audiodiff_core.evaluation.gathering import Gathered, Items
from audiodiff_core.evaluation.kernel import kernel_distance, kernel_distances
from audiodiff_core.mel import Images

ITEMS_AT_LEAST = 128  # of generated items, for a Fréchet distance that is worth stating
RESAMPLES = 100
SPLITS = 10
NORMAL_95 = 1.96  # standard deviations


def statistics_of(batches: Iterable[Images], embed: Callable[[Images], Features] = logmel_stats) -> FeatureStatistics:
    """Statistics of images that come in batches (n, y_res, x_res): what `evaluate_images` compares with. Raises ValueError for no images."""
    total = None
    for images in batches:
        part = FeatureStatistics.of(embed(images))
        total = part if total is None else total + part
    if total is None:
        raise ValueError("no images: statistics need some")
    return total


def evaluate_images(
    images: Images, reference: FeatureStatistics, embed: Callable[[Images], Features] = logmel_stats
) -> dict[str, float]:
    """The Fréchet distance of images (n, y_res, x_res) to statistics of real ones, with both sample sizes: for use beside training.

    The images are compared as they leave the network, not as audio that was made of them and analysed again.
    """
    return {
        "frechet": frechet_distance(FeatureStatistics.of(embed(images)), reference),
        "n_candidate": len(images),
        "n_reference": reference.count,
    }


def compare(
    reference: Gathered, candidate: Gathered, held_out: Gathered | None = None, seed: int = 0
) -> dict[str, float]:
    """Everything that is said of `candidate` items beside `reference` ones, by name.

    frechet, kernel, density, coverage   the metrics of `metrics.py`; NAME_low and NAME_high bound the 95 % interval that resampling gives (absent
                                         for kernel where most resamples hold a single item of a side)
    frechet_real_to_real, kernel_...     mean distance of two halves of the reference's tracks: what real audio scores; absent for one track
    nearest_candidate                    median distance of a candidate to the nearest reference item
    nearest_real                         the same of held-out items or, where there are none, of each reference item to those of other tracks
    nearer_share                         how often the first is smaller than the second: 0.5 expected, near 1 where training items are copied
    n_...                                sample sizes: all items count for `frechet`, the `n_paired_...` of each side's sample for the rest
    """
    generator = np.random.default_rng(seed)
    real, generated = reference.sample, candidate.sample
    density, coverage = density_coverage(real.features, generated.features)
    figures: dict[str, float] = {
        "frechet": frechet_distance(candidate.statistics, reference.statistics),
        "kernel": kernel_distance(generated.features, real.features),
        "density": density,
        "coverage": coverage,
    }
    for name, spread in _standard_errors(real, generated, generator).items():
        figures[f"{name}_low"] = figures[name] - NORMAL_95 * spread
        figures[f"{name}_high"] = figures[name] + NORMAL_95 * spread
    for name in ("frechet", "density", "coverage"):
        figures[f"{name}_low"] = max(0.0, figures[f"{name}_low"])
    figures["coverage_high"] = min(1.0, figures["coverage_high"])
    copying = _copying(real, generated, held_out.sample if held_out else None)
    return {**figures, **real_to_real(real, generator), **copying, **_sizes(reference, candidate, held_out)}


def closest(reference: Items, candidate: Items, count: int) -> list[tuple[str, str, float]]:
    """The `count` candidate items that lie nearest to a reference item: names of both and their distance."""
    found, which = nearest_distances(candidate.features, reference.features)
    return [
        (candidate.tracks[row], reference.tracks[which[row]], float(found[row]))
        for row in np.argsort(found, kind="stable")[:count]
    ]


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
            found.append(
                (frechet_distance(FeatureStatistics.of(one), FeatureStatistics.of(other)), kernel_distance(one, other))
            )
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
            frechet_distance(
                FeatureStatistics.of(candidate.features, mine), FeatureStatistics.of(reference.features, theirs)
            )
            for mine, theirs in zip(of_candidate.T, of_reference.T, strict=True)
        ]
    )
    density, coverage = density_coverages(reference.features, candidate.features, of_candidate)
    kernel = kernel_distances(candidate.features, reference.features, of_candidate, of_reference)
    values = {"frechet": frechet, "kernel": kernel, "density": density, "coverage": coverage}
    finite = {
        name: resamples[np.isfinite(resamples)] for name, resamples in values.items()
    }  # a resample of one item alone has no kernel distance
    return {
        name: float(np.std(resamples, ddof=1)) for name, resamples in finite.items() if len(resamples) > RESAMPLES // 2
    }


def resampled(tracks: npt.NDArray[np.int64], generator: np.random.Generator) -> ItemWeights:
    """How often each item counts (n, RESAMPLES) where as many tracks as there are are drawn with replacement; `tracks` (n,) counted from 0."""
    count = int(tracks.max()) + 1
    draws = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    weights: ItemWeights = draws.T[tracks].astype(np.float64)
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


def _sizes(reference: Gathered, candidate: Gathered, held_out: Gathered | None) -> dict[str, float]:
    return {
        "n_candidate": candidate.statistics.count,
        "n_reference": reference.statistics.count,
        "n_reference_tracks": reference.tracks,
        "n_held_out": held_out.statistics.count if held_out else 0,
        "n_paired_candidate": len(candidate.sample),
        "n_paired_reference": len(reference.sample),
        "n_paired_reference_tracks": len(set(reference.sample.tracks)),
        "n_paired_held_out": len(held_out.sample) if held_out else 0,
        "n_features": len(reference.statistics.mean),
    }
