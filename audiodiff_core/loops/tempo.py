"""Tempo of audio, from the grid of beats that explains its onsets best.

1. A period scores by the share of its beats that have an onset times the share of onsets (by strength) that lie on its beats: half the
   tempo misses onsets, twice the tempo has beats without any. Audio that repeats after 2, 3 or 4 beats adds to the score.
2. Whether the beats or every second or third of them are the beats is decided by what sounds between (`_divides`).
3. Linear regression over the onsets on the grid gives the exact period.
4. Where chance would put about as much on the best grid, or the audio does not repeat, there is no tempo.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples
from audiodiff_core.loops.beats import require_mono
from audiodiff_core.loops.onsets import TINY, Onsets, Values, find_onsets

TEMPOS_BPM = (40.0, 240.0)
USUAL_BPM = (57.0, 186.0)
UNUSUAL = 0.7
"""Factor of the score of tempos beyond USUAL_BPM."""
STEP = 0.0015
"""Relative distance of the periods that are tried."""
PHASES = 128
STRENGTH_EXPONENT = 0.7
"""Of onsets on a grid: accents count less than they are stronger."""
TOLERANCES_S = (0.012, 0.024)
"""An onset this close to a beat lies on it: half, or wholly."""
REGRESSION_TOLERANCE_S = 0.03
REPETITION_BEATS = ((2, 1.0), (3, 0.75), (4, 1.0))
"""Beats after which audio may repeat, with a factor: bars of three are rare."""
REPETITION_FLOOR = 0.3
BEATS_AT_LEAST = 4

# Which pulses are beats, from drum loops and metronomes of known tempo: strengths are relative to those on the beat.
BELOW_HATS = slice(0, 3)
FAINT_BEAT, NO_PULSE = 0.03, 0.1
ALIKE, BETWEEN_ALIKE, BETWEEN_UNLIKE = 0.9, 0.6, 0.85
KICK, KICKLESS = 0.6, 0.25
NO_SNARE, SNARE = 1.15, 1.4
OTHER_SOUND = 0.5

# Noise, speech and crackle exceed chance by up to 5 deviations and have a confidence of up to 0.3; drum loops and clicks have 0.4 or more.
CHANCE_DEVIATIONS, CHANCE_RATIOS = (3.0, 7.0), (1.5, 3.0)
ACCEPTED = 0.35
"""Confidence from which on there is a tempo."""


@dataclass(frozen=True)
class Tempo:
    """Beats per minute, None where there is no tempo, and a confidence in [0, 1], also where there is none."""

    bpm: float | None
    confidence: float


@dataclass(frozen=True)
class Grid:
    """Beats at `phase_s + k * period_s`."""

    period_s: float
    phase_s: float

    def beats(self, times_s: Values) -> tuple[Values, npt.NDArray[np.bool_]]:
        """The nearest beat to each time (n,), and which times lie on it."""
        beats = np.round((times_s - self.phase_s) / self.period_s)
        return beats, np.abs(times_s - self.phase_s - beats * self.period_s) < REGRESSION_TOLERANCE_S


def measure_tempo(audio: Samples, sample_rate: int) -> Tempo:
    """Measure the tempo of mono `audio` (n,), which needs at least 4 beats. The level of the audio has no influence.

    Raises ValueError as `require_mono` does.
    """
    require_mono(audio, sample_rate)
    nothing = Tempo(None, 0.0)
    if len(audio) / sample_rate < BEATS_AT_LEAST * 60 / TEMPOS_BPM[1] or not audio.any():
        return nothing
    onsets = find_onsets(audio, sample_rate)
    if len(onsets.times_s) < BEATS_AT_LEAST:
        return nothing
    longest = min(60 / TEMPOS_BPM[0], onsets.duration_s / BEATS_AT_LEAST)
    shortest = 60 / TEMPOS_BPM[1]
    periods = shortest * np.exp(STEP * np.arange(math.floor(math.log(longest / shortest) / STEP) + 1))
    on_beat, phases = _strength_on_beats(onsets, periods)
    scores = (
        np.square(on_beat)
        * periods
        * (REPETITION_FLOOR + _repetition(onsets, periods))
        * np.where(_usual(periods), 1, UNUSUAL)
    )
    best = int(scores.argmax())
    grid = _regressed(onsets, _metrical_level(onsets, _regressed(onsets, Grid(periods[best], phases[best]))))
    confidence = _confidence(onsets, grid.period_s)
    return Tempo(60 / grid.period_s if confidence >= ACCEPTED else None, confidence)


def _usual(periods: Values) -> npt.NDArray[np.bool_]:
    return (periods > 60 / USUAL_BPM[1]) & (periods < 60 / USUAL_BPM[0])


def _strength_on_beats(onsets: Onsets, periods: Values) -> tuple[Values, Values]:
    """For each period the largest sum of strengths on a grid of beats, and the phase of that grid in seconds."""
    rows = np.arange(len(periods))[:, np.newaxis]
    phases = np.mod(onsets.times_s / periods[:, np.newaxis], 1)
    cells = np.minimum((phases * PHASES).astype(np.int64), PHASES - 1) + rows * PHASES
    strengths = np.broadcast_to(onsets.strengths**STRENGTH_EXPONENT, cells.shape)
    folded = np.bincount(cells.ravel(), strengths.ravel(), len(periods) * PHASES).reshape(len(periods), PHASES)
    sums = np.cumsum(np.concatenate([np.zeros_like(folded[:, :1]), folded, folded], axis=1), axis=1)
    sums = np.concatenate([sums, sums[:, 1:] + sums[:, -1:]], axis=1)
    on_beat: Values = np.zeros(folded.shape)
    for tolerance_s in TOLERANCES_S:  # an onset counts the more the closer it is
        reach = (tolerance_s / periods * PHASES)[:, np.newaxis]
        low, high = np.arange(PHASES) + PHASES + 0.5 - reach, np.arange(PHASES) + PHASES + 0.5 + reach
        on_beat += (_at(sums, high) - _at(sums, low)) / len(TOLERANCES_S)
    best = on_beat.argmax(axis=1)
    return on_beat.max(axis=1), (best + 0.5) / PHASES * periods


def _at(rows: Values, places: Values) -> Values:
    """Each row at its fractional places."""
    low = np.floor(places).astype(np.int64)
    part = places - low
    values: Values = (1 - part) * np.take_along_axis(rows, low, axis=1) + part * np.take_along_axis(
        rows, low + 1, axis=1
    )
    return values


def _repetition(onsets: Onsets, periods: Values) -> Values:
    """The largest correlation of the envelope with itself 2, 3 or 4 beats later, in [0, 1]."""
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
        factor * np.interp(beats * lags, np.arange(count), correlations, right=0) for beats, factor in REPETITION_BEATS
    ]
    largest: Values = np.clip(np.max(repetitions, axis=0), 0, 1)
    return largest


def _regressed(onsets: Onsets, grid: Grid) -> Grid:
    """The grid by least squares over the onsets that lie on it."""
    for _ in range(3):
        beats, on = grid.beats(onsets.times_s)
        if len(set(beats[on])) < 2:
            break
        slope, intercept = np.polyfit(beats[on], onsets.times_s[on], 1, w=np.sqrt(onsets.strengths[on]))
        grid = Grid(float(slope), float(intercept))
    return grid


def _metrical_level(onsets: Onsets, grid: Grid) -> Grid:
    """`grid`, or one of 2 or 3 times or a half or a third of its tempo, within USUAL_BPM."""
    for count in (2, 3):
        faster = Grid(grid.period_s / count, grid.phase_s)
        if _usual(np.array(faster.period_s)) and not _divides(onsets, faster, count):
            return faster
    for count in (2, 3):
        if _usual(np.array(grid.period_s * count)):
            slower = [Grid(grid.period_s * count, grid.phase_s + first * grid.period_s) for first in range(count)]
            first = int(np.argmax([onsets.strengths[option.beats(onsets.times_s)[1]].sum() for option in slower]))
            if _divides(onsets, Grid(grid.period_s, slower[first].phase_s), count):
                return slower[first]
    return grid


def _divides(onsets: Onsets, fast: Grid, count: int) -> bool:
    """Tell whether only each `count`-th pulse of `fast`, from its phase on, is a beat, and the pulses between divide beats.

    Beats are all alike, or alternate between sounds (kick and snare). Divisions are weaker and of another sound, as hats are. The accents
    of a metronome differ in strength alone.
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
    weakest_on = float(np.quantile(on[BELOW_HATS].max(axis=0), 0.25))
    strength_between = float(np.median(between[BELOW_HATS].max(axis=0)))
    if strength_between < NO_PULSE * weakest_on:
        return True
    is_heard = on.mean(axis=1) > FAINT_BEAT
    ratios = between.mean(axis=1)[is_heard] / on.mean(axis=1)[is_heard]
    highest = float(ratios.max(initial=0))
    if count == 2:
        if _neighbours_alike(on) < ALIKE and strength_between < BETWEEN_UNLIKE * weakest_on:
            return True
        has_kick_on_beats_alone = np.median(on[0]) > KICK and between[0].mean() < KICKLESS * on[0].mean()
        if has_kick_on_beats_alone and highest < NO_SNARE:
            return True
    if strength_between >= BETWEEN_ALIKE * weakest_on or highest > SNARE:
        return False
    below_hats = ratios[: int(is_heard[BELOW_HATS].sum())]
    return bool(below_hats.min(initial=highest) < OTHER_SOUND * highest)


def _neighbours_alike(rises: Values) -> float:
    """The mean cosine of neighbouring beats' rises (bands, beats) below the hats."""
    tones = rises[BELOW_HATS] / np.maximum(np.linalg.norm(rises[BELOW_HATS], axis=0), TINY)
    return float((tones[:, 1:] * tones[:, :-1]).sum(axis=0).mean())


def _confidence(onsets: Onsets, period_s: float) -> float:
    """Degree to which the strength on the best grid exceeds chance, times the repetition of the audio, in [0, 1]."""
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
