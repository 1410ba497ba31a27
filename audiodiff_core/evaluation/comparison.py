"""Metrics of generated items against real items, with confidence intervals.

The real items are the reference, the generated items are the candidate. Items of one track are similar. Resamples and
splits of the real items therefore draw tracks, not items. Generated items are drawn independently. All draws use one
seed, so the same items have the same metrics.

The Fréchet distance uses the statistics of all items. The time of the other metrics grows with the product of the
numbers of items. The other metrics therefore use a sample of each side (see `gathering.py`). If a side has at most
`MAX_SAMPLE_ITEMS` items, the sample holds all of them.
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

MIN_ITEMS = 128
"""Smallest number of items of a side for a meaningful Fréchet distance."""
RESAMPLES = 100
SPLITS = 10
NORMAL_95 = 1.96
"""Half width of the 95 % interval of a normal distribution, in standard deviations."""


def statistics_of(batches: Iterable[Images], embed: Callable[[Images], Features] = logmel_stats) -> FeatureStatistics:
    """Compute the feature statistics of images, for `evaluate_images`.

    Args:
        batches: uint8 images of shape (batch, y_res, x_res).
        embed: Function from images to features of shape (batch, d).

    Raises:
        ValueError: If there are no images.
    """
    total = None
    for images in batches:
        statistics = FeatureStatistics.of(embed(images))
        total = statistics if total is None else total + statistics
    if total is None:
        raise ValueError("no images: statistics need at least one")
    return total


def evaluate_images(
    images: Images, reference: FeatureStatistics, embed: Callable[[Images], Features] = logmel_stats
) -> dict[str, float]:
    """Compute the Fréchet distance between generated images and the statistics of real images.

    The images are compared directly, without a conversion to audio and back. This is fast enough for validation during
    training.

    Args:
        images: Generated uint8 images of shape (n, y_res, x_res), n > 1.
        reference: Statistics of real images, from `statistics_of` with the same `embed`.
        embed: Function from images to features of shape (n, d).

    Returns:
        `frechet`, and the numbers of images `n_candidate` and `n_reference`.
    """
    return {
        "frechet": frechet_distance(FeatureStatistics.of(embed(images)), reference),
        "n_candidate": len(images),
        "n_reference": reference.count,
    }


def compare(
    reference: Gathered, candidate: Gathered, held_out: Gathered | None = None, seed: int = 0
) -> dict[str, float]:
    """Compute all metrics of generated items against real items.

    Args:
        reference: Real items.
        candidate: Generated items.
        held_out: Real items that the model was not trained on.
        seed: Seed of the resamples and splits.

    Returns:
        The metrics by name:

        - `frechet`, `kernel`, `density`, `coverage`: see the functions in `frechet.py`, `kernel.py` and `coverage.py`.
          `NAME_low` and `NAME_high` bound the 95 % confidence interval from resampling. They are missing for `kernel`
          if most resamples of a side repeat a single item.
        - `frechet_real_to_real`, `kernel_real_to_real`: mean distance between two halves of the reference tracks.
          Missing if no split of the tracks has at least two items in each half.
        - `nearest_candidate`: median distance of a candidate item to the nearest reference item.
        - `nearest_real`: median distance of a held-out item to the nearest reference item. Without `held_out`, median
          distance of a reference item to the nearest item of another track; missing if all items are of one track.
        - `nearer_share`: probability that the distance of a candidate item is smaller than the distance of a real
          item. 0.5 is expected. Values near 1 indicate copies of training items. Missing without `nearest_real`.
        - `n_candidate`, `n_reference`, `n_held_out`, `n_reference_tracks`: numbers of all items and tracks, which
          `frechet` uses. `n_paired_...`: numbers in the samples, which the other metrics use. `n_features`: dimension.

    Raises:
        ValueError: If a side has too few items for a metric.
    """
    generator = np.random.default_rng(seed)
    real, generated = reference.sample, candidate.sample
    density, coverage = density_coverage(real.features, generated.features)
    metrics: dict[str, float] = {
        "frechet": frechet_distance(candidate.statistics, reference.statistics),
        "kernel": kernel_distance(generated.features, real.features),
        "density": density,
        "coverage": coverage,
    }
    for name, error in _standard_errors(real, generated, generator).items():
        metrics[f"{name}_low"] = metrics[name] - NORMAL_95 * error
        metrics[f"{name}_high"] = metrics[name] + NORMAL_95 * error
    for name in ("frechet", "density", "coverage"):
        metrics[f"{name}_low"] = max(0.0, metrics[f"{name}_low"])
    metrics["coverage_high"] = min(1.0, metrics["coverage_high"])
    copying = _copying(real, generated, held_out.sample if held_out else None)
    return {**metrics, **real_to_real(real, generator), **copying, **_sizes(reference, candidate, held_out)}


def closest(reference: Items, candidate: Items, count: int) -> list[tuple[str, str, float]]:
    """Find the candidate items that are nearest to the reference items.

    Args:
        reference: Real items.
        candidate: Generated items.
        count: Number of pairs to return.

    Returns:
        The `count` pairs of smallest distance, in ascending order: the track of the candidate item, the track of its
        nearest reference item, and their distance.
    """
    nearest, indices = nearest_distances(candidate.features, reference.features)
    return [
        (candidate.tracks[row], reference.tracks[indices[row]], float(nearest[row]))
        for row in np.argsort(nearest, kind="stable")[:count]
    ]


def real_to_real(real: Items, generator: np.random.Generator) -> dict[str, float]:
    """Compute the distances between two halves of the real tracks, averaged over random splits.

    The result is the score of real audio at about half the number of items. Distances are larger for fewer items.

    Args:
        real: Real items.
        generator: Source of randomness.

    Returns:
        `frechet_real_to_real` and `kernel_real_to_real`. Empty if no split has at least two items in each half.
    """
    numbers = real.numbers
    tracks = int(numbers.max()) + 1
    splits = []
    for _ in range(SPLITS):
        in_first = np.isin(numbers, generator.permutation(tracks)[: tracks // 2])
        one, other = real.features[in_first], real.features[~in_first]
        if min(len(one), len(other)) > 1:
            splits.append(
                (frechet_distance(FeatureStatistics.of(one), FeatureStatistics.of(other)), kernel_distance(one, other))
            )
    if not splits:
        return {}
    frechet, kernel = np.mean(splits, axis=0)
    return {"frechet_real_to_real": float(frechet), "kernel_real_to_real": float(kernel)}


def _standard_errors(reference: Items, candidate: Items, generator: np.random.Generator) -> dict[str, float]:
    """Standard deviation of each metric over resamples of both sides.

    Density and coverage resample the candidate only, because the balls around repeated reference items would have
    radius 0. If the reference has only one track, its items are resampled independently.
    """
    numbers = reference.numbers if len(set(reference.tracks)) > 1 else np.arange(len(reference))
    reference_weights = resampled(numbers, generator)
    candidate_weights = resampled(np.arange(len(candidate)), generator)
    frechet = np.array(
        [
            frechet_distance(
                FeatureStatistics.of(candidate.features, candidate_column),
                FeatureStatistics.of(reference.features, reference_column),
            )
            for candidate_column, reference_column in zip(candidate_weights.T, reference_weights.T, strict=True)
        ]
    )
    density, coverage = density_coverages(reference.features, candidate.features, candidate_weights)
    kernel = kernel_distances(candidate.features, reference.features, candidate_weights, reference_weights)
    values = {"frechet": frechet, "kernel": kernel, "density": density, "coverage": coverage}
    # The kernel distance is NaN for resamples that repeat a single item.
    finite = {name: resamples[np.isfinite(resamples)] for name, resamples in values.items()}
    return {
        name: float(np.std(resamples, ddof=1)) for name, resamples in finite.items() if len(resamples) > RESAMPLES // 2
    }


def resampled(tracks: npt.NDArray[np.int64], generator: np.random.Generator) -> ItemWeights:
    """Draw bootstrap resamples. Each resample has the original number of tracks, drawn with replacement.

    Args:
        tracks: Number of the track of each item, counted from 0, of shape (n,).
        generator: Source of randomness.

    Returns:
        Multiplicity of each item in each resample, of shape (n, RESAMPLES).
    """
    count = int(tracks.max()) + 1
    draws = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    weights: ItemWeights = draws.T[tracks].astype(np.float64)
    return weights


def _copying(reference: Items, candidate: Items, held_out: Items | None) -> dict[str, float]:
    """Metrics that show copies of reference items."""
    nearest, _ = nearest_distances(candidate.features, reference.features)
    metrics = {"nearest_candidate": float(np.median(nearest))}
    if held_out is not None:
        real, _ = nearest_distances(held_out.features, reference.features)
    elif len(set(reference.tracks)) > 1:
        real = nearest_other_distances(reference.features, reference.numbers)
    else:
        return metrics
    return {**metrics, "nearest_real": float(np.median(real)), "nearer_share": nearer_share(nearest, real)}


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
