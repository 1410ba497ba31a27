"""What a mel configuration is worth, told before any work starts: what cannot work, what costs quality and its mend, what to expect.

Imports nothing slow: a job asks this before it does anything else.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from audiodiff_core.mel import IMAGE_MAX, LARGEST_N_FFT, MelConfig, band_edges_hz

# Image sides must divide by these: presets of `audiodiff_core.models`, which takes seconds to import, by name.
SIDE_MULTIPLES = {"tiny": 8, "ddpm-64": 32, "ddpm-256": 32}

SHORTEST_SLICE_S, LONGEST_SLICE_S = 0.25, 60.0

# A PNG of sound without pauses: 0.57 (512x512) to 0.74 (64x32) over the whole slices of the loops in tests/data/loops. Silence takes less.
BYTES_PER_PIXEL = 0.65

# The fit of `expected_round_trip`: `python -m tests.benchmarks.round_trip` measures it again. Frames further apart than LITTLE_OVERLAP of a
# window have less to agree on, so that their image is met more closely, which is not to say that it sounds better.
ROUND_TRIP_LEVELS = 0.727
ROUND_TRIP_BANDS_EXPONENT = 0.122
ROUND_TRIP_WINDOW_EXPONENT = -0.049
ROUND_TRIP_LITTLE_OVERLAP = 0.84
LITTLE_OVERLAP = 3 / 8


@dataclass(frozen=True)
class Finding:
    """One line for the user. An error: no model or no audio can be made of it. A warning: it costs quality, or limits what can be done."""

    severity: Literal["error", "warning", "info"]
    message: str


def lint(config: MelConfig, slices: int | None = None) -> list[Finding]:
    """All findings about a configuration, errors first; `slices`, where known, is how many images it will make."""
    found = [*_sides(config), *_bands(config), *_hop(config), *_duration(config), *_round_trip(config), *_size(config, slices)]
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

    It tells that the vocoder meets the image (1 to 2 levels nearly everywhere), not that the image tells all of the sound: few bands are
    easily met. Over the loops in tests/data/loops, each repeated to fill the slice, and 89 settings with 8 to 512 bands, n_fft 1024 to 4096
    and rates of 22 and 44 kHz, this is off by 21 % (root mean square), at most by 73 %.
    """
    if not (60 <= config.top_db <= 100 and config.n_iter >= 16 and config.hop_length < config.n_fft):
        return None
    overlap = ROUND_TRIP_LITTLE_OVERLAP if config.hop_length > LITTLE_OVERLAP * config.n_fft else 1.0
    window = math.pow(config.n_fft / config.slice_size, ROUND_TRIP_WINDOW_EXPONENT)
    return ROUND_TRIP_LEVELS * math.pow(config.y_res, ROUND_TRIP_BANDS_EXPONENT) * window * overlap


def filterbank_rank(config: MelConfig) -> int:
    """How many bands of the filterbank are independent of each other: those that can be given a frequency bin of their own."""
    edges = band_edges_hz(config) * config.n_fft / config.sample_rate
    rank = free = 0
    for first, last in zip(np.floor(edges[:-2] + 1e-6) + 1, np.ceil(edges[2:] - 1e-6) - 1, strict=True):  # an edge on a bin leaves it out
        free = max(free, first)
        if free <= last:
            rank += 1
            free += 1
    return rank


def _sides(config: MelConfig) -> Iterator[Finding]:
    takers = [preset for preset, multiple in SIDE_MULTIPLES.items() if config.x_res % multiple == config.y_res % multiple == 0]
    if len(takers) == len(SIDE_MULTIPLES):
        return
    largest = max(SIDE_MULTIPLES.values())
    sides = (config.x_res, config.y_res)
    smaller = ",".join(str(max(1, side // largest) * largest) for side in sides)
    larger = ",".join(str(math.ceil(side / largest) * largest) for side in sides)
    start, mend = f"resolution {config.x_res},{config.y_res}", f"use {smaller}" if smaller == larger else f"use {smaller} or {larger}"
    if takers:
        yield Finding("warning", f"{start}: only preset {', '.join(takers)} takes it, the others halve pictures more often; {mend} to have the choice")
    else:
        yield Finding("error", f"{start}: no network takes it, both sides must divide by {min(SIDE_MULTIPLES.values())}; {mend}")


def _bands(config: MelConfig) -> Iterator[Finding]:
    bins = config.n_fft // 2 + 1
    if config.y_res > bins:
        yield Finding("error", f"{config.y_res} bands are more than the {bins} frequencies of n_fft {config.n_fft}; {_full_rank(config)}")
    elif (rank := filterbank_rank(config)) < config.y_res:
        state = f"the filterbank of {config.y_res} bands has rank {rank} at n_fft {config.n_fft} and {config.sample_rate} Hz: bands repeat each other"
        yield Finding("warning", f"{state}; {_full_rank(config)}")


def _full_rank(config: MelConfig) -> str:
    """The smallest changes that give the filterbank full rank."""

    def first(candidates: Iterator[MelConfig], name: Callable[[MelConfig], str]) -> list[str]:
        return [name(candidate) for candidate in candidates if filterbank_rank(candidate) == candidate.y_res][:1]

    longer = (config.model_copy(update={"n_fft": config.n_fft << doublings}) for doublings in range(1, (LARGEST_N_FFT // config.n_fft).bit_length()))
    step = min(SIDE_MULTIPLES.values()) if config.y_res <= max(SIDE_MULTIPLES.values()) else max(SIDE_MULTIPLES.values())
    fewer = (config.model_copy(update={"y_res": bands}) for bands in range((config.y_res - 1) // step * step, 0, -step))
    mends = first(longer, lambda candidate: f"n_fft {candidate.n_fft}") + first(fewer, lambda candidate: f"{candidate.y_res} bands (resolution)")
    return f"use {' or '.join(mends)}"


def _hop(config: MelConfig) -> Iterator[Finding]:
    mend = f"use hop_length {config.n_fft // 2} or less, or a larger n_fft"
    if config.hop_length >= config.n_fft:
        yield Finding("error", f"hop_length {config.hop_length} is not below n_fft {config.n_fft}: no audio can be made from such images; {mend}")
    elif config.hop_length > config.n_fft // 2:
        yield Finding("warning", f"hop_length {config.hop_length} is over half of n_fft {config.n_fft}: sound between the frames is lost; {mend}")


def _duration(config: MelConfig) -> Iterator[Finding]:
    seconds = config.slice_duration_s
    yield Finding("info", f"a slice is {seconds:.3g} s: {config.x_res} frames, {config.hop_length} samples apart, at {config.sample_rate} Hz")
    if seconds < SHORTEST_SLICE_S:
        yield Finding("warning", f"a slice of {seconds:.3g} s is too short for music; use a larger width (resolution) or hop_length")
    elif seconds > LONGEST_SLICE_S:
        yield Finding("warning", f"a slice of {seconds:.3g} s: files shorter than that are padded with silence; use a smaller width (resolution) or hop_length")


def _round_trip(config: MelConfig) -> Iterator[Finding]:
    levels = expected_round_trip(config)
    if levels is None:
        return
    yield Finding("info", f"expected round-trip error: {levels:.1f} of {IMAGE_MAX} levels, {levels * config.top_db / IMAGE_MAX:.1f} dB")


def _size(config: MelConfig, slices: int | None) -> Iterator[Finding]:
    if slices is not None:
        yield Finding("info", f"about {slices:,} slices, {expected_bytes(config, slices) / 1e6:,.1f} MB on disk")
