"""Checks of mel configurations before any work starts: errors, quality warnings and estimates.

Imports no slow module, so that a job can check its options first.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from audiodiff_core.mel.config import MAX_N_FFT, MelConfig, band_edges_hz
from audiodiff_core.mel.ranges import IMAGE_MAX

# Numbers that must divide both sides of an image, by network preset. The numbers are copied from
# `audiodiff_core.models.presets`, whose import takes seconds.
SIDE_MULTIPLES = {"tiny": 8, "tiny-folded": 8, "small": 8, "ddpm-64": 32, "ddpm-256": 32}

MIN_SLICE_S, MAX_SLICE_S = 0.25, 60.0

# PNGs of the loops in tests/data/loops have 0.57 (512x512) to 0.74 (64x32) bytes per pixel. Silence takes less.
BYTES_PER_PIXEL = 0.65

# Weights of `round_trip_features` in `expected_round_trip`, fitted by `python -m tests.benchmarks.round_trip`.
ROUND_TRIP_WEIGHTS = (5.412, -1.149, 0.105, 0.187, 1.012, -0.092, 1.721, 0.053, -0.073, 0.768)

# The same benchmark compares the spectrum of each loop with the spectrum of the audio made from its image. The mean
# difference depends on the number of bands and on the length of a slice in windows of n_fft samples:
#   16, 32, 64 and 256 bands (128 frames):    5.9, 4.7, 4.0 and 2.5 dB
#   1, 4, 8 and 32 windows (64 bands):        6.6, 5.1, 4.8 and 3.9 dB
MIN_BANDS = 32
MIN_WINDOWS = 8


@dataclass(frozen=True)
class Finding:
    """A one-line message about a configuration.

    Attributes:
        severity: "error" if no model can be trained or no audio can be made with the configuration, "warning" if it
            reduces quality or limits later choices, "info" for estimates.
        message: Description of the finding. Errors and warnings also name a setting that solves the problem.
    """

    severity: Literal["error", "warning", "info"]
    message: str


def check_mel(config: MelConfig, slices: int | None = None) -> list[Finding]:
    """Check a configuration.

    Args:
        config: The configuration to check.
        slices: Number of images that will be made, for an estimate of their size. None skips the estimate.

    Returns:
        All findings: first errors, then warnings, then infos.
    """
    findings = [
        *_sides(config),
        *_bands(config),
        *_hop(config),
        *_duration(config),
        *_detail(config),
        *_round_trip(config),
        *_size(config, slices),
    ]
    return sorted(findings, key=lambda finding: ("error", "warning", "info").index(finding.severity))


def expected_slices(config: MelConfig, seconds: float, files: int, overlap: float = 0.0) -> int:
    """Estimate the number of slices of a set of audio files.

    Args:
        config: Defines the duration of a slice.
        seconds: Total duration of the files.
        files: Number of files. Each file has at least one slice.
        overlap: Fraction of a slice that the next slice repeats, in [0, 1).
    """
    remaining_s = max(0.0, seconds - files * config.slice_duration_s)
    return files + math.ceil(remaining_s / (config.slice_duration_s * (1 - overlap)))


def expected_bytes(config: MelConfig, slices: int) -> int:
    """Estimate the size on disk, in bytes, of a data set with this number of images."""
    return math.ceil(slices * config.x_res * config.y_res * BYTES_PER_PIXEL)


def expected_round_trip(config: MelConfig) -> float | None:
    """Estimate the round-trip error of an image: image to audio by `GriffinLim`, and back to an image.

    The error measures how well the audio matches the image. It does not measure how much of the sound the image keeps:
    with few bands, images are easy to match. Typical errors are 0.5 to 2.5 levels.

    The estimate was fitted to the loops in tests/data/loops, each repeated to fill a slice, with 132 configurations: 8
    to 1024 bands, n_fft 512 to 16384, 16 to 48 kHz. Its relative error is 9 % (root mean square), and at most 28 %.

    Returns:
        The mean absolute difference of pixels, in levels of 0 to 255, or None outside the range of the fit.
    """
    if not (60 <= config.top_db <= 100 and config.n_iter >= 16 and config.hop_length < config.n_fft):
        return None
    return math.exp(
        sum(weight * feature for weight, feature in zip(ROUND_TRIP_WEIGHTS, round_trip_features(config), strict=True))
    )


def round_trip_features(config: MelConfig) -> tuple[float, ...]:
    """Compute the features for `expected_round_trip`.

    The sum of the features, weighted by ROUND_TRIP_WEIGHTS, is the natural logarithm of the round-trip error.
    """
    bands, rate = math.log2(config.y_res / 128), math.log2(config.sample_rate / 22_050)
    window, slice_windows = math.log2(config.n_fft / 2_048), math.log2(config.slice_size / config.n_fft)
    frames_per_window = math.log2(config.n_fft / config.hop_length)
    rank = math.log2(filterbank_rank(config) / (config.n_fft / 2))  # independent bands per frequency bin
    below_64_bands = max(0.0, -1 - bands)
    hop_over_quarter = min(0.0, frames_per_window - 2)  # negative if frames are more than a quarter of a window apart
    hop_over_half = min(0.0, frames_per_window - 1)
    return (
        1.0,
        bands,
        below_64_bands,
        rate,
        window,
        slice_windows,
        rank,
        rank**2,
        rank * hop_over_quarter,
        hop_over_half,
    )


def filterbank_rank(config: MelConfig) -> int:
    """Compute the rank of the filterbank: the number of bands that are linearly independent.

    The rank is the largest number of bands that can each be assigned a separate frequency bin.
    """
    edges = band_edges_hz(config) * config.n_fft / config.sample_rate  # in bins
    # A band has no weight in a bin at its edge. The tolerance of 1e-6 absorbs rounding errors.
    first_bins, last_bins = np.floor(edges[:-2] + 1e-6) + 1, np.ceil(edges[2:] - 1e-6) - 1
    rank = free_bin = 0
    for first, last in zip(first_bins, last_bins, strict=True):
        free_bin = max(free_bin, first)
        if free_bin <= last:
            rank += 1
            free_bin += 1
    return rank


def _sides(config: MelConfig) -> Iterator[Finding]:
    presets = [
        preset for preset, multiple in SIDE_MULTIPLES.items() if config.x_res % multiple == config.y_res % multiple == 0
    ]
    if len(presets) == len(SIDE_MULTIPLES):
        return
    largest = max(SIDE_MULTIPLES.values())
    sides = (config.x_res, config.y_res)
    smaller = ",".join(str(max(1, side // largest) * largest) for side in sides)
    larger = ",".join(str(math.ceil(side / largest) * largest) for side in sides)
    setting = f"resolution {config.x_res},{config.y_res}"
    fix = f"use {smaller}" if smaller == larger else f"use {smaller} or {larger}"
    if presets:
        yield Finding(
            "warning",
            f"{setting}: supported only by preset {', '.join(presets)}, because the others need sides divisible by "
            f"{largest}; {fix} for all presets",
        )
    else:
        smallest = min(SIDE_MULTIPLES.values())
        yield Finding(
            "error",
            f"{setting}: not supported by any network, both sides must be divisible by {smallest}; {fix}",
        )


def _bands(config: MelConfig) -> Iterator[Finding]:
    bins = config.n_fft // 2 + 1
    if config.y_res > bins:
        yield Finding(
            "error",
            f"{config.y_res} bands exceed the {bins} frequency bins of n_fft {config.n_fft}; {_full_rank_fix(config)}",
        )
    elif (rank := filterbank_rank(config)) < config.y_res:
        yield Finding(
            "warning",
            f"the filterbank of {config.y_res} bands has only rank {rank} at n_fft {config.n_fft} and "
            f"{config.sample_rate} Hz, so that bands repeat each other; {_full_rank_fix(config)}",
        )


def _full_rank_fix(config: MelConfig) -> str:
    """Describe the smallest changes that give the filterbank full rank."""

    def first(candidates: Iterator[MelConfig], describe: Callable[[MelConfig], str]) -> list[str]:
        return [describe(candidate) for candidate in candidates if filterbank_rank(candidate) == candidate.y_res][:1]

    longer = (
        config.model_copy(update={"n_fft": config.n_fft << doublings})
        for doublings in range(1, (MAX_N_FFT // config.n_fft).bit_length())
    )
    step = (
        min(SIDE_MULTIPLES.values()) if config.y_res <= max(SIDE_MULTIPLES.values()) else max(SIDE_MULTIPLES.values())
    )
    fewer = (config.model_copy(update={"y_res": bands}) for bands in range((config.y_res - 1) // step * step, 0, -step))
    fixes = first(longer, lambda candidate: f"n_fft {candidate.n_fft}") + first(
        fewer, lambda candidate: f"{candidate.y_res} bands (resolution)"
    )
    return f"use {' or '.join(fixes)}" if fixes else "use fewer bands (resolution) and a larger n_fft"


def _hop(config: MelConfig) -> Iterator[Finding]:
    fix = f"use hop_length {config.n_fft // 2} or less, or a larger n_fft"
    if config.hop_length >= config.n_fft:
        yield Finding(
            "error",
            f"hop_length {config.hop_length} is not below n_fft {config.n_fft}: "
            f"no audio can be made from such images; {fix}",
        )
    elif config.hop_length > config.n_fft // 2:
        yield Finding(
            "warning",
            f"hop_length {config.hop_length} is more than half of n_fft {config.n_fft}: "
            f"sound between frames is lost; {fix}",
        )


def _duration(config: MelConfig) -> Iterator[Finding]:
    seconds = config.slice_duration_s
    yield Finding(
        "info",
        f"slice duration: {seconds:.3g} s ({config.x_res} frames, {config.hop_length} samples apart, "
        f"at {config.sample_rate} Hz)",
    )
    if seconds < MIN_SLICE_S:
        yield Finding(
            "warning",
            f"a slice of {seconds:.3g} s is too short for music; use a larger width (resolution) or hop_length",
        )
    elif seconds > MAX_SLICE_S:
        yield Finding(
            "warning",
            f"a slice of {seconds:.3g} s is long: files shorter than a slice are padded with silence; "
            "use a smaller width (resolution) or hop_length",
        )


def _detail(config: MelConfig) -> Iterator[Finding]:
    """Warn if images keep little detail of their sound, even if the vocoder matches the images well."""
    if config.y_res < MIN_BANDS:
        yield Finding(
            "warning",
            f"{config.y_res} bands are too few for pitch and timbre; use {MIN_BANDS} or more (resolution)",
        )
    windows = config.x_res * config.hop_length / config.n_fft
    if windows < MIN_WINDOWS:
        yield Finding(
            "warning",
            f"a slice has a length of only {windows:.3g} windows of n_fft {config.n_fft}, which blurs its timing; "
            "use a smaller n_fft or a larger width (resolution)",
        )


def _round_trip(config: MelConfig) -> Iterator[Finding]:
    if (levels := expected_round_trip(config)) is not None:
        decibels = levels * config.top_db / IMAGE_MAX
        yield Finding("info", f"expected round-trip error: {levels:.1f} of {IMAGE_MAX} levels, {decibels:.1f} dB")


def _size(config: MelConfig, slices: int | None) -> Iterator[Finding]:
    if slices is not None:
        yield Finding("info", f"about {slices:,} slices, {expected_bytes(config, slices) / 1e6:,.1f} MB on disk")
