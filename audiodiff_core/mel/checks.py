"""What a mel configuration is worth, told before any work starts: what cannot work, what costs quality and its mend, what to expect.

Imports nothing slow: a job asks this before it does anything else.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from audiodiff_core.mel.config import LARGEST_N_FFT, MelConfig, band_edges_hz
from audiodiff_core.mel.ranges import IMAGE_MAX

# Image sides must divide by these: presets of `audiodiff_core.models.networks`, which takes seconds to import, by name.
SIDE_MULTIPLES = {"tiny": 8, "ddpm-64": 32, "ddpm-256": 32}

SHORTEST_SLICE_S, LONGEST_SLICE_S = 0.25, 60.0

# A PNG of sound without pauses: 0.57 (512x512) to 0.74 (64x32) over the whole slices of the loops in tests/data/loops. Silence takes less.
BYTES_PER_PIXEL = 0.65

# The fit of `expected_round_trip` to what `python -m tests.benchmarks.round_trip` measures: the weights of `round_trip_features`.
ROUND_TRIP_WEIGHTS = (5.412, -1.149, 0.105, 0.187, 1.012, -0.092, 1.721, 0.053, -0.073, 0.768)

# By how many dB the spectrum of the loops' audio differs from that of their images' audio, in the mean, by the same benchmark:
# 5.9 with 16 bands, 4.7 with 32, 4.0 with 64, 2.5 with 256 (128 frames); of 64 bands, with slices of 1, 4, 8 and 32 windows 6.6, 5.1, 4.8 and 3.9.
FEWEST_BANDS = 32
FEWEST_WINDOWS = 8


@dataclass(frozen=True)
class Finding:
    """One line for the user. An error: no model or no audio can be made of it. A warning: it costs quality, or limits what can be done."""

    severity: Literal["error", "warning", "info"]
    message: str


def check_mel(config: MelConfig, slices: int | None = None) -> list[Finding]:
    """All findings about a configuration, errors first; `slices`, where known, is how many images it will make."""
    found = [
        *_sides(config),
        *_bands(config),
        *_hop(config),
        *_duration(config),
        *_detail(config),
        *_round_trip(config),
        *_size(config, slices),
    ]
    return sorted(found, key=lambda finding: ("error", "warning", "info").index(finding.severity))


def expected_slices(config: MelConfig, seconds: float, files: int, overlap: float = 0.0) -> int:
    """About how many slices `files` of `seconds` in all become: one each, and more for what they hold beyond it; `overlap` in [0, 1)."""
    beyond_s = max(0.0, seconds - files * config.slice_duration_s)
    return files + math.ceil(beyond_s / (config.slice_duration_s * (1 - overlap)))


def expected_bytes(config: MelConfig, slices: int) -> int:
    """About what a dataset of so many images takes on disk."""
    return math.ceil(slices * config.x_res * config.y_res * BYTES_PER_PIXEL)


def expected_round_trip(config: MelConfig) -> float | None:
    """About how many of the 255 levels an image and that of its audio by `GriffinLim` differ, in the mean over pixels; None where not measured.

    It tells how well the vocoder meets the image (0.5 to 2.5 levels), not how much of the sound the image tells: few bands are easily met.
    Over the loops in tests/data/loops, each repeated to fill the slice, and 132 settings with 8 to 1024 bands, n_fft 512 to 16384 and rates
    of 16 to 48 kHz, this is off by 9 % (root mean square), at most by 28 %.
    """
    if not (60 <= config.top_db <= 100 and config.n_iter >= 16 and config.hop_length < config.n_fft):
        return None
    return math.exp(
        sum(weight * feature for weight, feature in zip(ROUND_TRIP_WEIGHTS, round_trip_features(config), strict=True))
    )


def round_trip_features(config: MelConfig) -> tuple[float, ...]:
    """What the logarithm of the round-trip error is a weighted sum of."""
    bands, rate = math.log2(config.y_res / 128), math.log2(config.sample_rate / 22_050)
    window, slice_windows = math.log2(config.n_fft / 2_048), math.log2(config.slice_size / config.n_fft)
    overlap = math.log2(config.n_fft / config.hop_length)
    resolved = math.log2(filterbank_rank(config) / (config.n_fft / 2))  # independent bands a frequency
    few_bands, quarter, half = (
        max(0.0, -1 - bands),
        min(0.0, overlap - 2),
        min(0.0, overlap - 1),
    )  # frames further than a quarter, a half window apart
    return 1.0, bands, few_bands, rate, window, slice_windows, resolved, resolved**2, resolved * quarter, half


def filterbank_rank(config: MelConfig) -> int:
    """How many bands of the filterbank are independent of each other: those that can be given a frequency bin of their own."""
    edges = band_edges_hz(config) * config.n_fft / config.sample_rate
    rank = free = 0
    for first, last in zip(
        np.floor(edges[:-2] + 1e-6) + 1, np.ceil(edges[2:] - 1e-6) - 1, strict=True
    ):  # an edge on a bin leaves it out
        free = max(free, first)
        if free <= last:
            rank += 1
            free += 1
    return rank


def _sides(config: MelConfig) -> Iterator[Finding]:
    takers = [
        preset for preset, multiple in SIDE_MULTIPLES.items() if config.x_res % multiple == config.y_res % multiple == 0
    ]
    if len(takers) == len(SIDE_MULTIPLES):
        return
    largest = max(SIDE_MULTIPLES.values())
    sides = (config.x_res, config.y_res)
    smaller = ",".join(str(max(1, side // largest) * largest) for side in sides)
    larger = ",".join(str(math.ceil(side / largest) * largest) for side in sides)
    start, mend = (
        f"resolution {config.x_res},{config.y_res}",
        f"use {smaller}" if smaller == larger else f"use {smaller} or {larger}",
    )
    if takers:
        yield Finding(
            "warning",
            f"{start}: only preset {', '.join(takers)} takes it, the others halve pictures more often; {mend} to have the choice",
        )
    else:
        yield Finding(
            "error", f"{start}: no network takes it, both sides must divide by {min(SIDE_MULTIPLES.values())}; {mend}"
        )


def _bands(config: MelConfig) -> Iterator[Finding]:
    bins = config.n_fft // 2 + 1
    if config.y_res > bins:
        yield Finding(
            "error",
            f"{config.y_res} bands are more than the {bins} frequencies of n_fft {config.n_fft}; {_full_rank(config)}",
        )
    elif (rank := filterbank_rank(config)) < config.y_res:
        state = f"the filterbank of {config.y_res} bands has rank {rank} at n_fft {config.n_fft} and {config.sample_rate} Hz: bands repeat each other"
        yield Finding("warning", f"{state}; {_full_rank(config)}")


def _full_rank(config: MelConfig) -> str:
    """The smallest changes that give the filterbank full rank."""

    def first(candidates: Iterator[MelConfig], name: Callable[[MelConfig], str]) -> list[str]:
        return [name(candidate) for candidate in candidates if filterbank_rank(candidate) == candidate.y_res][:1]

    longer = (
        config.model_copy(update={"n_fft": config.n_fft << doublings})
        for doublings in range(1, (LARGEST_N_FFT // config.n_fft).bit_length())
    )
    step = (
        min(SIDE_MULTIPLES.values()) if config.y_res <= max(SIDE_MULTIPLES.values()) else max(SIDE_MULTIPLES.values())
    )
    fewer = (config.model_copy(update={"y_res": bands}) for bands in range((config.y_res - 1) // step * step, 0, -step))
    mends = first(longer, lambda candidate: f"n_fft {candidate.n_fft}") + first(
        fewer, lambda candidate: f"{candidate.y_res} bands (resolution)"
    )
    return f"use {' or '.join(mends)}" if mends else "use fewer bands (resolution) and a larger n_fft"


def _hop(config: MelConfig) -> Iterator[Finding]:
    mend = f"use hop_length {config.n_fft // 2} or less, or a larger n_fft"
    if config.hop_length >= config.n_fft:
        yield Finding(
            "error",
            f"hop_length {config.hop_length} is not below n_fft {config.n_fft}: no audio can be made from such images; {mend}",
        )
    elif config.hop_length > config.n_fft // 2:
        yield Finding(
            "warning",
            f"hop_length {config.hop_length} is over half of n_fft {config.n_fft}: sound between the frames is lost; {mend}",
        )


def _duration(config: MelConfig) -> Iterator[Finding]:
    seconds = config.slice_duration_s
    yield Finding(
        "info",
        f"a slice is {seconds:.3g} s: {config.x_res} frames, {config.hop_length} samples apart, at {config.sample_rate} Hz",
    )
    if seconds < SHORTEST_SLICE_S:
        yield Finding(
            "warning",
            f"a slice of {seconds:.3g} s is too short for music; use a larger width (resolution) or hop_length",
        )
    elif seconds > LONGEST_SLICE_S:
        yield Finding(
            "warning",
            f"a slice of {seconds:.3g} s: files shorter than that are padded with silence; use a smaller width (resolution) or hop_length",
        )


def _detail(config: MelConfig) -> Iterator[Finding]:
    """Where an image tells little of its sound, however well the vocoder meets it."""
    if config.y_res < FEWEST_BANDS:
        yield Finding(
            "warning",
            f"{config.y_res} bands tell little of a sound's pitch and colour; use {FEWEST_BANDS} or more (resolution)",
        )
    windows = config.x_res * config.hop_length / config.n_fft
    if windows < FEWEST_WINDOWS:
        mend = "use a smaller n_fft or a larger width (resolution)"
        yield Finding(
            "warning",
            f"a slice is only {windows:.3g} windows of n_fft {config.n_fft} long: the sound's timing is blurred; {mend}",
        )


def _round_trip(config: MelConfig) -> Iterator[Finding]:
    if (levels := expected_round_trip(config)) is not None:
        yield Finding(
            "info",
            f"expected round-trip error: {levels:.1f} of {IMAGE_MAX} levels, {levels * config.top_db / IMAGE_MAX:.1f} dB",
        )


def _size(config: MelConfig, slices: int | None) -> Iterator[Finding]:
    if slices is not None:
        yield Finding("info", f"about {slices:,} slices, {expected_bytes(config, slices) / 1e6:,.1f} MB on disk")
