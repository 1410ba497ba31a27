"""Tempo estimation: the beat grid that explains the onsets of the audio best.

1. Each candidate period is scored. The score is the product of two shares: the share of beats that have an onset, and
   the share of onset strength that lies on beats. Half the tempo misses onsets, and twice the tempo has beats without
   onsets. The score is higher if the audio repeats after 2, 3 or 4 beats.
2. The metrical level is chosen. The sounds between the beats decide whether the beat is the period, a multiple of the
   period, or a fraction of the period (`_divides`).
3. Linear regression over the onsets on the grid refines the period.
4. The audio has no tempo if random onsets would fit the best grid about as well, or if the audio does not repeat.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples
from audiodiff_core.loops.beats import require_mono
from audiodiff_core.loops.onsets import TINY, Onsets, Values, find_onsets

TEMPO_RANGE_BPM = (40.0, 240.0)
"""Lowest and highest detected tempo."""
COMMON_RANGE_BPM = (57.0, 186.0)
UNCOMMON_TEMPO_WEIGHT = 0.7
"""Factor of the score of tempos outside COMMON_RANGE_BPM."""
PERIOD_STEP = 0.0015
"""Relative difference of successive candidate periods."""
PHASE_BINS = 128
STRENGTH_EXPONENT = 0.7
"""Exponent of onset strengths on a grid, which reduces the influence of accents."""
TOLERANCES_S = (0.012, 0.024)
"""Distances in seconds from a beat. An onset counts fully within the first and half within the second."""
REGRESSION_TOLERANCE_S = 0.03
"""Largest distance in seconds of an onset from its beat in the regression."""
REPETITION_BEATS = ((2, 1.0), (3, 0.75), (4, 1.0))
"""Numbers of beats after which audio may repeat, with their weights. Bars of three beats are rare."""
REPETITION_FLOOR = 0.3
"""Factor of the score of a period if the audio does not repeat after multiples of the period."""
MIN_BEATS = 4

# Thresholds of `_divides`, tuned on drum loops and metronomes of known tempo. The beats are a candidate. A ratio is the
# strength of the pulses between the beats divided by the strength of the pulses on the beats.
BANDS_BELOW_HATS = slice(0, 3)
MIN_BAND_RISE = 0.03
"""Smallest mean rise on the beats of a band. Other bands are not compared."""
ABSENT_PULSE_RATIO = 0.1
"""Ratio below which nothing plays between the beats."""
SIMILAR_BEATS = 0.9
"""Mean cosine similarity from which successive beats have the same sound."""
DIVISION_RATIO = 0.85
"""Ratio below which the pulses between the beats are divisions, if the beats alternate between sounds."""
BEAT_RATIO = 0.6
"""Ratio from which the pulses between the beats are beats too."""
MIN_KICK_RISE = 0.6
"""Median rise of the lowest band above which a kick plays on the beats."""
MAX_KICK_RATIO = 0.25
"""Ratio of the lowest band below which no kick plays between the beats."""
MAX_RATIO_WITHOUT_SNARE = 1.15
"""If the ratios of all bands are below this value, no snare plays between the beats."""
MIN_SNARE_RATIO = 1.4
"""If the ratio of a band is above this value, a snare plays between the beats, and its pulses are beats too."""
MAX_TIMBRE_RATIO = 0.5
"""Smallest ratio of a band, as a fraction of the largest ratio, below which the timbre between the beats differs."""

# The best grids of noise, speech and crackle exceed chance by up to 5 standard deviations. Their confidence is at most
# 0.3. The confidence of drum loops and clicks is at least 0.4.
CHANCE_DEVIATIONS = (3.0, 7.0)
"""Excess over chance, in standard deviations, at which the confidence is 0, and from which it is not reduced."""
CHANCE_RATIOS = (1.5, 3.0)
"""Strength relative to chance at which the confidence is 0, and from which it is not reduced."""
MIN_CONFIDENCE = 0.35
"""Smallest confidence at which the audio has a tempo."""


@dataclass(frozen=True)
class Tempo:
    """Tempo of audio.

    Args:
        bpm: Beats per minute; None if the audio has no tempo.
        confidence: Confidence in [0, 1] of the best beat grid, also if `bpm` is None.
    """

    bpm: float | None
    confidence: float


@dataclass(frozen=True)
class Grid:
    """Grid of beats at `phase_s + k * period_s` seconds for all integers k."""

    period_s: float
    phase_s: float

    def beats(self, times_s: Values) -> tuple[Values, npt.NDArray[np.bool_]]:
        """Return the index k of the beat nearest to each time, and a mask of the times on their beat.

        `times_s` and both results are of shape (n,).
        """
        beats = np.round((times_s - self.phase_s) / self.period_s)
        return beats, np.abs(times_s - self.phase_s - beats * self.period_s) < REGRESSION_TOLERANCE_S


def measure_tempo(audio: Samples, sample_rate: int) -> Tempo:
    """Measure the tempo of mono audio. The result does not depend on the level of the audio.

    Args:
        audio: Mono samples of shape (n,). Audio of fewer than 4 beats has no tempo.
        sample_rate: Sample rate in Hz, at least 1000.

    Raises:
        ValueError: If the audio is empty, not mono, or holds NaN or infinite samples.
    """
    require_mono(audio, sample_rate)
    no_tempo = Tempo(None, 0.0)
    if len(audio) / sample_rate < MIN_BEATS * 60 / TEMPO_RANGE_BPM[1] or not audio.any():
        return no_tempo
    onsets = find_onsets(audio, sample_rate)
    if len(onsets.times_s) < MIN_BEATS:
        return no_tempo
    longest = min(60 / TEMPO_RANGE_BPM[0], onsets.duration_s / MIN_BEATS)
    shortest = 60 / TEMPO_RANGE_BPM[1]
    steps = math.floor(math.log(longest / shortest) / PERIOD_STEP)
    periods = shortest * np.exp(PERIOD_STEP * np.arange(steps + 1))
    on_beat, phases = _strength_on_beats(onsets, periods)
    scores = (
        np.square(on_beat)
        * periods
        * (REPETITION_FLOOR + _repetition(onsets, periods))
        * np.where(_is_common(periods), 1, UNCOMMON_TEMPO_WEIGHT)
    )
    best = int(scores.argmax())
    grid = _refine(onsets, _metrical_level(onsets, _refine(onsets, Grid(periods[best], phases[best]))))
    confidence = _confidence(onsets, grid.period_s)
    return Tempo(60 / grid.period_s if confidence >= MIN_CONFIDENCE else None, confidence)


def _is_common(periods: Values) -> npt.NDArray[np.bool_]:
    return (periods > 60 / COMMON_RANGE_BPM[1]) & (periods < 60 / COMMON_RANGE_BPM[0])


def _strength_on_beats(onsets: Onsets, periods: Values) -> tuple[Values, Values]:
    """Largest sum of onset strengths on a grid of each period, and the phase of that grid in seconds."""
    rows = np.arange(len(periods))[:, np.newaxis]
    beats = onsets.times_s / periods[:, np.newaxis]
    bins = np.minimum(((beats - np.floor(beats)) * PHASE_BINS).astype(np.int64), PHASE_BINS - 1) + rows * PHASE_BINS
    strengths = np.broadcast_to(onsets.strengths**STRENGTH_EXPONENT, bins.shape)
    folded = np.bincount(bins.ravel(), strengths.ravel(), len(periods) * PHASE_BINS)
    folded = folded.reshape(len(periods), PHASE_BINS)
    # Running sums over a period and its margins: a window around a beat may extend over either end of the period.
    margin = math.ceil(max(TOLERANCES_S) / periods[0] * PHASE_BINS)
    padded = np.pad(folded, ((0, 0), (margin + 1, margin + 1)), mode="wrap")
    padded[:, 0] = 0
    sums: Values = np.cumsum(padded, axis=1, dtype=np.float64)
    on_beat: Values = np.zeros((len(periods), PHASE_BINS))
    for tolerance_s in TOLERANCES_S:
        reach = tolerance_s / periods * PHASE_BINS
        _add_from_place(on_beat, sums, margin + 0.5 + reach, 1 / len(TOLERANCES_S))
        _add_from_place(on_beat, sums, margin + 0.5 - reach, -1 / len(TOLERANCES_S))
    best = on_beat.argmax(axis=1)
    return on_beat[np.arange(len(periods)), best], (best + 0.5) / PHASE_BINS * periods


def _add_from_place(total: Values, rows: Values, places: Values, weight: float) -> None:
    """Add `weight` times each row to `total`, interpolated linearly at PHASE_BINS positions from a fractional place on.

    Rows of a run whose places have the same integer part are slices of the same columns.
    """
    whole = np.floor(places).astype(np.int64)
    above = weight * (places - whole)[:, np.newaxis]
    runs = [0, *(np.flatnonzero(np.diff(whole)) + 1), len(rows)]
    for first, end in itertools.pairwise(runs):
        start = int(whole[first])
        total[first:end] += (weight - above[first:end]) * rows[first:end, start : start + PHASE_BINS]
        total[first:end] += above[first:end] * rows[first:end, start + 1 : start + 1 + PHASE_BINS]


def _repetition(onsets: Onsets, periods: Values) -> Values:
    """Largest correlation of the envelope with itself 2, 3 or 4 beats later, in [0, 1]."""
    import scipy.fft
    from scipy.ndimage import maximum_filter1d

    envelope = maximum_filter1d(onsets.envelope, 2 * round(0.015 / onsets.hop_s) + 1)
    envelope -= envelope.mean()
    count = len(envelope)
    size = scipy.fft.next_fast_len(2 * count)
    products = scipy.fft.irfft(np.square(np.abs(scipy.fft.rfft(envelope, size))), size)[:count]
    energy = np.concatenate([[0], np.cumsum(np.square(envelope))])
    overlapping = np.sqrt(energy[count:0:-1] * (energy[-1] - energy[:count]))
    correlations = np.where(np.arange(count) < count * 2 / 3, products / np.maximum(overlapping, TINY), 0)
    lags = periods / onsets.hop_s
    repetitions = [
        weight * np.interp(beats * lags, np.arange(count), correlations, right=0) for beats, weight in REPETITION_BEATS
    ]
    largest: Values = np.clip(np.max(repetitions, axis=0), 0, 1)
    return largest


def _refine(onsets: Onsets, grid: Grid) -> Grid:
    """Fit the grid by least squares to the onsets that lie on it."""
    for _ in range(3):
        beats, on = grid.beats(onsets.times_s)
        if len(set(beats[on])) < 2:
            break
        slope, intercept = np.polyfit(beats[on], onsets.times_s[on], 1, w=np.sqrt(onsets.strengths[on]))
        grid = Grid(float(slope), float(intercept))
    return grid


def _metrical_level(onsets: Onsets, grid: Grid) -> Grid:
    """Return `grid`, or the grid of 2, 3, 1/2 or 1/3 times its tempo whose pulses are the beats.

    Another grid is returned only if its tempo is in COMMON_RANGE_BPM.
    """
    for count in (2, 3):
        faster = Grid(grid.period_s / count, grid.phase_s)
        if _is_common(np.array(faster.period_s)) and not _divides(onsets, faster, count):
            return faster
    for count in (2, 3):
        if _is_common(np.array(grid.period_s * count)):
            slower = [Grid(grid.period_s * count, grid.phase_s + first * grid.period_s) for first in range(count)]
            strongest = max(slower, key=lambda option: onsets.strengths[option.beats(onsets.times_s)[1]].sum())
            if _divides(onsets, Grid(grid.period_s, strongest.phase_s), count):
                return strongest
    return grid


def _divides(onsets: Onsets, fast: Grid, count: int) -> bool:
    """Return True if only every `count`-th pulse of `fast` is a beat.

    Beats all have the same sound, or alternate between sounds (kick and snare). The pulses between beats are weaker and
    have another timbre (hi-hats). The accents of a metronome differ from its other beats in strength only.
    """
    from scipy.ndimage import maximum_filter1d

    near = maximum_filter1d(onsets.rises, 2 * round(REGRESSION_TOLERANCE_S / onsets.hop_s) + 1, axis=1)
    pulses = np.arange(
        math.ceil(-fast.phase_s / fast.period_s), math.floor((onsets.duration_s - fast.phase_s) / fast.period_s) + 1
    )
    frames = (
        np.round((fast.phase_s + pulses * fast.period_s + onsets.delay_s) / onsets.hop_s)
        .astype(int)
        .clip(0, near.shape[1] - 1)
    )
    on, between = near[:, frames[pulses % count == 0]], near[:, frames[pulses % count != 0]]
    if on.shape[1] < 2 or not between.size:
        return True
    strength_on = float(np.quantile(on[BANDS_BELOW_HATS].max(axis=0), 0.25))
    strength_between = float(np.median(between[BANDS_BELOW_HATS].max(axis=0)))
    if strength_between < ABSENT_PULSE_RATIO * strength_on:
        return True
    is_active = on.mean(axis=1) > MIN_BAND_RISE
    ratios = between.mean(axis=1)[is_active] / on.mean(axis=1)[is_active]
    largest_ratio = float(ratios.max(initial=0))
    if count == 2:
        if _similarity_of_neighbors(on) < SIMILAR_BEATS and strength_between < DIVISION_RATIO * strength_on:
            return True
        has_kick_on_beats_only = np.median(on[0]) > MIN_KICK_RISE and between[0].mean() < MAX_KICK_RATIO * on[0].mean()
        if has_kick_on_beats_only and largest_ratio < MAX_RATIO_WITHOUT_SNARE:
            return True
    if strength_between >= BEAT_RATIO * strength_on or largest_ratio > MIN_SNARE_RATIO:
        return False
    ratios_below_hats = ratios[: int(is_active[BANDS_BELOW_HATS].sum())]
    return bool(ratios_below_hats.min(initial=largest_ratio) < MAX_TIMBRE_RATIO * largest_ratio)


def _similarity_of_neighbors(rises: Values) -> float:
    """Mean cosine similarity of the `rises` (bands, beats) of successive beats, without the hi-hat band."""
    directions = rises[BANDS_BELOW_HATS] / np.maximum(np.linalg.norm(rises[BANDS_BELOW_HATS], axis=0), TINY)
    return float((directions[:, 1:] * directions[:, :-1]).sum(axis=0).mean())


def _confidence(onsets: Onsets, period_s: float) -> float:
    """Excess of the strength on the best grid over chance, times the repetition of the audio, in [0, 1]."""
    periods = np.array([period_s])
    strength, total = float(_strength_on_beats(onsets, periods)[0][0]), float(onsets.strengths.sum())
    chance = 2 * sum(TOLERANCES_S) / len(TOLERANCES_S) / period_s
    deviation = math.sqrt(chance * (1 - chance) * float(np.square(onsets.strengths).sum()))
    excess, lift = (strength - chance * total) / deviation, strength / (chance * total)
    return float(
        _repetition(onsets, periods)[0]
        * np.interp(excess, CHANCE_DEVIATIONS, (0, 1))
        * np.interp(lift, CHANCE_RATIOS, (0, 1))
    )
