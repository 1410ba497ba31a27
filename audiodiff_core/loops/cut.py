"""Extraction of loops of whole bars from audio.

1. `beats.track_beats` finds the beats.
2. `cut_loop` cuts whole bars, beginning at a downbeat if the tracker detects downbeats, else at a beat. Each end of the
   loop lies at a zero crossing just before the attack of its beat. Of the zero crossings near the end of the loop,
   `cut_loop` chooses the crossing whose preceding samples are most similar to the samples before the start.
3. The last milliseconds of the loop fade into the audio before the first beat of the loop. The wrap is then the
   original transition to this beat.
4. If a tempo is requested, the loop is stretched on a circle to exactly
   round(bars * beats_per_bar * 60 / bpm * sample_rate) samples.

Seamless generated audio needs no cutting. `seam_score` rates the seam of cut loops and of generated loops.
"""

import math

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples
from audiodiff_core.audio.crossfade import correlation, crossfade
from audiodiff_core.audio.wav_chunks import BEATS_PER_BAR, LOOP_TEMPO_RANGE_BPM, MAX_BEATS_PER_BAR, LoopInfo
from audiodiff_core.loops.beats import ATTACK_S, Beats, BeatTracker, require_mono, track_beats
from audiodiff_core.loops.stretch import MAX_STRETCH, stretch_circular
from audiodiff_core.loops.tempo import measure_tempo

ATTACK_BLOCK_S = 0.002
MIN_ATTACK_RISE = 4.0
"""Smallest ratio of the powers of successive blocks at an attack."""
ATTACK_FLOOR = 1e-12
"""Power added to every block, relative to the squared peak, so that rises in near silence are not attacks."""
CROSSING_S = 0.01
"""Largest distance in seconds of a zero crossing before its attack."""
CROSSFADE_S = 0.02


def tempo_bpm(audio: Samples, sample_rate: int) -> float | None:
    """Measure the tempo of mono audio with `measure_tempo`, in beats per minute; None without a tempo."""
    return measure_tempo(audio, sample_rate).bpm


def loop_length(bars: int, bpm: float, sample_rate: int, beats_per_bar: int = BEATS_PER_BAR) -> int:
    """Return the number of samples of a loop of `bars` bars at `bpm`, rounded to the nearest integer.

    Raises:
        ValueError: If `bars`, `bpm` or `beats_per_bar` is out of range.
    """
    _check_meter(bars, bpm, beats_per_bar)
    return round(bars * beats_per_bar * 60 / bpm * sample_rate)


def cut_loop(
    audio: Samples,
    sample_rate: int,
    *,
    bars: int | None = None,
    bpm: float | None = None,
    beats_per_bar: int = BEATS_PER_BAR,
    tracker: BeatTracker | None = "librosa",
) -> tuple[Samples, LoopInfo]:
    """Cut a loop of whole bars from mono audio.

    Args:
        audio: Mono samples of shape (n,).
        sample_rate: Sample rate in Hz, at least 1000.
        bars: Number of bars. None: all whole bars that follow the first downbeat or, if the tracker detects no
            downbeats, the first beat.
        bpm: Tempo of the loop in beats per minute, 20 to 400. The loop is stretched at constant pitch to exactly
            `loop_length` samples. The beats are first thinned out or subdivided by the power of 2 that brings the
            tempo of the audio nearest to `bpm`. None: the tempo of the audio.
        beats_per_bar: 1 to 64.
        tracker: The beat tracker. None, for audio without a pulse, cuts the first `loop_length` samples of the audio
            without stretching, and needs `bars` and `bpm`.

    Returns:
        Samples of the loop of shape (m,), and the meter of the loop for `encode_audio`. If the loop is the whole audio,
        the ends are not crossfaded.

    Raises:
        ValueError: If an argument is out of range, or if the audio is shorter than the requested bars.
    """
    require_mono(audio, sample_rate)
    _check_meter(1 if bars is None else bars, LOOP_TEMPO_RANGE_BPM[0] if bpm is None else bpm, beats_per_bar)
    if tracker is None:
        if bars is None or bpm is None:
            raise ValueError("tracker None needs bars and bpm: without beats, they alone determine the length")
        length = loop_length(bars, bpm, sample_rate, beats_per_bar)
        if length > len(audio):
            raise ValueError(
                f"bars {bars} at bpm {bpm:g} are {length} samples, the audio has {len(audio)}: use fewer bars"
            )
        loop = _cut_with_crossfade(audio, 0, length, round(CROSSFADE_S * sample_rate))
        return loop, LoopInfo(bars * beats_per_bar, beats_per_bar)
    beats = track_beats(audio, sample_rate, tracker)
    start_s, end_s, bars = _whole_bars(beats, bars, bpm, beats_per_bar)
    start, end = _at_crossings(audio, round(start_s * sample_rate), round(end_s * sample_rate), sample_rate)
    loop = _cut_with_crossfade(audio, start, end, round(CROSSFADE_S * sample_rate))
    if bpm is not None:
        loop = stretch_circular(loop, loop_length(bars, bpm, sample_rate, beats_per_bar), sample_rate)
    return loop, LoopInfo(bars * beats_per_bar, beats_per_bar)


def fit_length(audio: Samples, length: int, sample_rate: int, circular: bool) -> Samples:
    """Fit mono audio to a number of samples that its bars fix.

    Args:
        audio: Mono samples (n,).
        length: Number of samples.
        sample_rate: Sample rate in Hz.
        circular: Whether the audio is one period of a loop. It is then stretched on a circle at constant pitch.
            Otherwise it is cut, and its end fades into what follows the cut.

    Returns:
        float32 samples (length,).

    Raises:
        ValueError: If audio that is not circular is too short.
    """
    if circular:
        return stretch_circular(audio, length, sample_rate)
    if length > len(audio):
        raise ValueError(f"bars of {length} samples: the audio has {len(audio)}, use fewer bars or a larger width")
    return _cut_with_crossfade(audio, 0, length, round(CROSSFADE_S * sample_rate))


def whole_beats(audio: Samples, sample_rate: int) -> LoopInfo:
    """Estimate the meter of mono audio that is a loop.

    Returns:
        The meter: the whole number of beats that is nearest to the measured tempo, in bars of 4 beats. `beats` is None
        if the audio has no tempo.
    """
    return meter_of_tempo(tempo_bpm(audio, sample_rate), len(audio), sample_rate)


def meter_of_tempo(bpm: float | None, length: int, sample_rate: int) -> LoopInfo:
    """Return the meter of a loop: the whole number of beats that is nearest to its tempo.

    Args:
        bpm: Tempo in beats per minute, or None.
        length: Length of the loop in samples.
        sample_rate: Sample rate in Hz.
    """
    return LoopInfo(None if bpm is None else max(1, round(bpm * length / sample_rate / 60)))


def _whole_bars(beats: Beats, bars: int | None, bpm: float | None, beats_per_bar: int) -> tuple[float, float, int]:
    """Start and end of the loop in seconds, and its number of bars."""
    first = next(iter(beats.downbeats), 0)
    times = beats.times_s[first:]
    if bpm is not None and len(times) > 1:
        times = _at_tempo(times, bpm)
    available = max(0, (len(times) - 1) // beats_per_bar)
    if available < (1 if bars is None else bars):
        requested = "a whole bar" if bars is None else f"bars {bars}"
        raise ValueError(
            f"{requested} of {beats_per_bar} beats: the audio has {len(times)} beats, {available} bars; "
            "use fewer bars or longer audio"
        )
    bars = available if bars is None else bars
    start_s, end_s = float(times[0]), float(times[bars * beats_per_bar])
    if bpm is not None:
        ratio = (end_s - start_s) / (bars * beats_per_bar * 60 / bpm)
        if not 1 / MAX_STRETCH <= ratio <= MAX_STRETCH:
            raise ValueError(
                f"bpm {bpm:g}: changes the tempo of the audio by a factor of {ratio:.2f}, must be 0.5 to 2"
            )
    return start_s, end_s, bars


def _at_tempo(times_s: npt.NDArray[np.float64], bpm: float) -> npt.NDArray[np.float64]:
    """Thin out or interpolate the beats by the power of 2 that brings their tempo nearest to `bpm`."""
    octaves = round(math.log2(bpm / (60 / float(np.median(np.diff(times_s))))))
    if octaves <= 0:
        return times_s[:: 1 << -octaves]
    positions = np.arange((len(times_s) - 1 << octaves) + 1) / (1 << octaves)
    return np.interp(positions, np.arange(len(times_s)), times_s)


def _at_crossings(audio: Samples, start: int, end: int, sample_rate: int) -> tuple[int, int]:
    """Move the start and end beats to rising zero crossings before their attacks.

    The start moves to the last crossing. The end moves to the crossing whose preceding samples correlate best
    with the samples before the start, over the length of the crossfade. The first and the last sample of the audio do
    not move.
    """
    reach, fade = round(CROSSING_S * sample_rate), round(CROSSFADE_S * sample_rate)
    if start > 0:
        start = _attack(audio, start, sample_rate)
        crossings = _rising_crossings(audio, start - reach, start + 1)
        start = int(crossings[-1]) if len(crossings) else start
    if end >= len(audio):
        return start, len(audio)
    end = _attack(audio, end, sample_rate)
    fade = min(fade, start)
    crossings = _rising_crossings(audio, end - reach, end + 1)
    crossings = crossings[crossings - fade > start]
    if not len(crossings):
        return start, end
    lead_in = audio[start - fade : start]
    return start, int(max(crossings, key=lambda at: (correlation(lead_in, audio[at - fade : at]), at)))


def _attack(audio: Samples, beat: int, sample_rate: int) -> int:
    """Sample at which the sound of a beat begins, or `beat` itself if the audio has no attack nearby."""
    reach, block = round(ATTACK_S * sample_rate), max(1, round(ATTACK_BLOCK_S * sample_rate))
    first = max(0, beat - reach)
    # Differentiation emphasizes high frequencies, whose attacks are sharper.
    emphasized = np.diff(audio[first : beat + reach].astype(np.float64))
    power = np.square(emphasized[: len(emphasized) // block * block]).reshape(-1, block).mean(axis=1)
    if len(power) < 2 or not power.any():
        return beat
    floor = ATTACK_FLOOR * float(np.square(audio).max())
    rises = (power[1:] + floor) / (power[:-1] + floor)
    steepest = int(rises.argmax())
    return first + (steepest + 1) * block if rises[steepest] >= MIN_ATTACK_RISE else beat


def _rising_crossings(audio: Samples, low: int, high: int) -> npt.NDArray[np.int64]:
    """Samples in [low, high) at which the audio rises through zero."""
    low = max(low, 1)
    return low + np.flatnonzero((audio[low - 1 : high - 1] < 0) & (audio[low:high] >= 0))


def _cut_with_crossfade(audio: Samples, start: int, end: int, length: int) -> Samples:
    """Return audio[start:end] with its wrap crossfaded over up to `length` samples.

    The end of the loop fades into the audio before `start`. If more audio is available after `end`, that audio fades
    into the beginning of the loop instead.
    """
    loop = audio[start:end].copy()
    length = min(length, len(loop) // 2)
    before, after = min(length, start), min(length, len(audio) - end)
    if before >= after and before:
        loop[-before:] = crossfade(loop[-before:], audio[start - before : start])
    elif after:
        loop[:after] = crossfade(audio[end : end + after], loop[:after])
    return loop


def _check_meter(bars: int, bpm: float, beats_per_bar: int) -> None:
    low, high = LOOP_TEMPO_RANGE_BPM
    if bars < 1:
        raise ValueError(f"bars {bars}: must be at least 1")
    if not low <= bpm <= high:
        raise ValueError(f"bpm {bpm}: must be {low:g} to {high:g}")
    if not 1 <= beats_per_bar <= MAX_BEATS_PER_BAR:
        raise ValueError(f"beats_per_bar {beats_per_bar}: must be 1 to {MAX_BEATS_PER_BAR}")
