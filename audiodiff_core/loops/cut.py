"""From any audio to a loop of whole bars, and how well it loops.

1. `beats.track_beats` finds beats.
2. `cut_loop` cuts whole bars from a (down)beat on, just before its attack, each end at a zero crossing, the later one where it is reached most alike.
3. The last milliseconds fade into what came before the first beat, so that the wrap is a place where the audio went on.
4. Asked for a tempo, it stretches the loop, as a circle, to exactly round(bars * beats_per_bar * 60 / bpm * sample_rate) samples.

Audio that was generated in circular time needs none of this: it has no ends. `seam_score` tells, of either.
"""

import math

import numpy as np
import numpy.typing as npt

from audiodiff_core.audio import Samples
from audiodiff_core.audio.wav_chunks import LoopInfo
from audiodiff_core.loops.beats import ATTACK_S, Beats, BeatTracker, require_mono, track_beats
from audiodiff_core.loops.stretch import FURTHEST, stretch_circular
from audiodiff_core.loops.tempo import measure_tempo

TEMPOS_BPM = (20.0, 400.0)
ATTACK_BLOCK_S, ATTACK_RISE = 0.002, 4.0
"""A beat's attack is where the power of neighbouring blocks rises most, if by so much at least."""
ATTACK_FLOOR = 1e-12
"""Power relative to that of the audio's peak, below which rises are ignored."""
CROSSING_S = 0.01
CROSSFADE_S = 0.02


def tempo_bpm(audio: Samples, sample_rate: int) -> float | None:
    """Tempo in beats per minute (`measure_tempo`), None where there is none."""
    return measure_tempo(audio, sample_rate).bpm


def loop_length(bars: int, bpm: float, sample_rate: int, beats_per_bar: int = 4) -> int:
    """Samples of a loop of `bars` bars at `bpm`: exact to half a sample."""
    _check_metre(bars, bpm, beats_per_bar)
    return round(bars * beats_per_bar * 60 / bpm * sample_rate)


def cut_loop(
    audio: Samples,
    sample_rate: int,
    *,
    bars: int | None = None,
    bpm: float | None = None,
    beats_per_bar: int = 4,
    tracker: BeatTracker | None = "librosa",
) -> tuple[Samples, LoopInfo]:
    """A loop (m,) cut from `audio` (n,), with its metre for `encode`.

    bars: how many; None: as many as there are from the first (down)beat on. bpm: the loop is stretched to it, pitch kept, from the
    audio's tempo or twice or half of that, whichever is nearest, to exactly `loop_length` samples; None: as it was played.
    tracker None: no beats are looked for; the first `loop_length` samples of the audio, as they are, for sounds without a pulse.
    Where the audio holds nothing but the bars (a loop already), there is nothing to fade into and its ends stay as they are.

    Raises ValueError, naming it, for an argument out of range and where the audio has fewer bars than asked for.
    """
    require_mono(audio, sample_rate)
    _check_metre(1 if bars is None else bars, TEMPOS_BPM[0] if bpm is None else bpm, beats_per_bar)
    if tracker is None:
        if bars is None or bpm is None:
            raise ValueError("tracker None needs bars and bpm: without beats they alone say how long the loop is")
        length = loop_length(bars, bpm, sample_rate, beats_per_bar)
        if length > len(audio):
            raise ValueError(
                f"bars {bars} at bpm {bpm:g} are {length} samples, the audio has {len(audio)}: ask for fewer bars"
            )
        return _crossfaded(audio, 0, length, round(CROSSFADE_S * sample_rate)), LoopInfo(
            bars * beats_per_bar, beats_per_bar
        )
    beats = track_beats(audio, sample_rate, tracker)
    start_s, end_s, bars = _whole_bars(beats, bars, bpm, beats_per_bar)
    start, end = _at_crossings(audio, round(start_s * sample_rate), round(end_s * sample_rate), sample_rate)
    loop = _crossfaded(audio, start, end, round(CROSSFADE_S * sample_rate))
    if bpm is not None:
        loop = stretch_circular(loop, loop_length(bars, bpm, sample_rate, beats_per_bar), sample_rate)
    return loop, LoopInfo(bars * beats_per_bar, beats_per_bar)


def whole_beats(audio: Samples, sample_rate: int) -> LoopInfo:
    """Metre of audio that is a loop already: the whole number of beats nearest to its tempo in bars of 4, or no beats without a tempo."""
    bpm = tempo_bpm(audio, sample_rate)
    return LoopInfo(None if bpm is None else max(1, round(bpm * len(audio) / sample_rate / 60)))


def _whole_bars(beats: Beats, bars: int | None, bpm: float | None, beats_per_bar: int) -> tuple[float, float, int]:
    """Start and end in seconds, and how many bars lie between."""
    times = beats.times_s
    first = next(iter(beats.downbeats), 0)
    times = times[first:]
    if bpm is not None and len(times) > 1:
        times = _at_tempo(times, bpm)
    most = (len(times) - 1) // beats_per_bar
    if most < (1 if bars is None else bars):
        wanted = "a whole bar" if bars is None else f"bars {bars}"
        raise ValueError(
            f"{wanted} of {beats_per_bar} beats: the audio has {len(times)} beats, {max(0, most)} bars; ask for less, or give more audio"
        )
    bars = most if bars is None else bars
    if (
        bpm is not None
        and not 1 / FURTHEST
        <= (ratio := (times[bars * beats_per_bar] - times[0]) / (bars * beats_per_bar * 60 / bpm))
        <= FURTHEST
    ):
        raise ValueError(
            f"bpm {bpm:g}: the audio's tempo would have to change by a factor of {ratio:.2f}, 0.5 to 2 can be done"
        )
    return float(times[0]), float(times[bars * beats_per_bar]), bars


def _at_tempo(times_s: npt.NDArray[np.float64], bpm: float) -> npt.NDArray[np.float64]:
    """The beats, or every other, or twice as many, as often as brings their tempo nearest to `bpm`."""
    octaves = round(math.log2(bpm / (60 / float(np.median(np.diff(times_s))))))
    if octaves <= 0:
        return times_s[:: 1 << -octaves]
    places = np.arange((len(times_s) - 1 << octaves) + 1) / (1 << octaves)
    return np.interp(places, np.arange(len(times_s)), times_s)


def _at_crossings(audio: Samples, start: int, end: int, sample_rate: int) -> tuple[int, int]:
    """Start and end (beats) moved to the last rising zero crossing before the beat's attack; the ends of the audio stay what they are.

    Of the crossings near the end, it is the one that is reached most as the start is, over the length of the crossfade.
    """
    within, fade = round(CROSSING_S * sample_rate), round(CROSSFADE_S * sample_rate)
    if start > 0:
        start = _attack(audio, start, sample_rate)
        crossings = _rising(audio, start - within, start + 1)
        start = int(crossings[-1]) if len(crossings) else start
    if end >= len(audio):
        return start, len(audio)
    end = _attack(audio, end, sample_rate)
    fade = min(fade, start)
    crossings = _rising(audio, end - within, end + 1)
    crossings = crossings[crossings - fade > start]
    if not len(crossings):
        return start, end
    before = audio[start - fade : start]
    return start, int(max(crossings, key=lambda place: (_correlation(before, audio[place - fade : place]), place)))


def _attack(audio: Samples, beat: int, sample_rate: int) -> int:
    """Where the sound of a beat begins; `beat` itself where nothing rises around it."""
    reach, block = round(ATTACK_S * sample_rate), max(1, round(ATTACK_BLOCK_S * sample_rate))
    first = max(0, beat - reach)
    bright = np.diff(audio[first : beat + reach].astype(np.float64))  # the higher a frequency, the sharper its attack
    power = np.square(bright[: len(bright) // block * block]).reshape(-1, block).mean(axis=1)
    if len(power) < 2 or not power.any():
        return beat
    floor = ATTACK_FLOOR * float(np.square(audio).max())
    rises = (power[1:] + floor) / (power[:-1] + floor)
    steepest = int(rises.argmax())
    return first + (steepest + 1) * block if rises[steepest] >= ATTACK_RISE else beat


def _rising(audio: Samples, low: int, high: int) -> npt.NDArray[np.int64]:
    """The places in [low, high) where the audio comes from below zero."""
    low = max(low, 1)
    return low + np.flatnonzero((audio[low - 1 : high - 1] < 0) & (audio[low:high] >= 0))


def _crossfaded(audio: Samples, start: int, end: int, length: int) -> Samples:
    """audio[start:end], its end faded into what came before the start or, where more is there, its start out of what comes after the end."""
    loop = audio[start:end].copy()
    length = min(length, len(loop) // 2)
    before, after = min(length, start), min(length, len(audio) - end)
    if before >= after and before:
        loop[-before:] = _mixed(loop[-before:], audio[start - before : start])
    elif after:
        loop[:after] = _mixed(audio[end : end + after], loop[:after])
    return loop


def _mixed(out: Samples, into: Samples) -> Samples:
    """From one to the other at equal power: by sine and cosine where they are unlike, and the less the more alike they are, so that neither
    a dip nor a bump is heard (Fink, Holters & Zölzer, "Signal-matched power-complementary cross-fading", 2016)."""
    angle = (np.arange(len(out)) + 0.5) / len(out) * np.pi / 2
    falling, rising = np.cos(angle), np.sin(angle)
    alike = max(0.0, _correlation(out, into))
    return ((falling * out + rising * into) / np.sqrt(1 + 2 * falling * rising * alike)).astype(np.float32)


def _correlation(one: Samples, other: Samples) -> float:
    """-1 to 1; 0 where either is silent."""
    energy = math.sqrt(float(np.square(one, dtype=np.float64).sum()) * float(np.square(other, dtype=np.float64).sum()))
    return float(np.dot(one.astype(np.float64), other)) / energy if energy > 0 else 0.0


def _check_metre(bars: int, bpm: float, beats_per_bar: int) -> None:
    if bars < 1:
        raise ValueError(f"bars {bars}: a loop has at least 1")
    if not TEMPOS_BPM[0] <= bpm <= TEMPOS_BPM[1]:
        raise ValueError(f"bpm {bpm}: {TEMPOS_BPM[0]:g} to {TEMPOS_BPM[1]:g} are tempos")
    if not 1 <= beats_per_bar <= 64:
        raise ValueError(f"beats_per_bar {beats_per_bar}: a bar has 1 to 64")
