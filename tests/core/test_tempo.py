"""Tempo of metronomes and drum loops with known tempo, and of audio without beats."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal

from audiodiff_core.loops.tempo import measure_tempo
from tests.rare import rare, rare_but

Audio = npt.NDArray[np.float32]
Sound = npt.NDArray[np.float64]

EXACT = 0.005


def decaying(sound: Sound, rate: int, seconds: float) -> Sound:
    return sound * np.exp(-np.arange(len(sound)) / rate / seconds)


def sine(hertz: float, seconds: float, rate: int) -> Sound:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def noise(seconds: float, rate: int) -> Sound:
    return np.random.default_rng(0).standard_normal(round(seconds * rate))


CLICKS: dict[str, Callable[[int], Sound]] = {
    "impulse": lambda rate: np.ones(max(1, rate // 1_000)),
    "burst": lambda rate: 0.3 * noise(0.005, rate),
    "ping": lambda rate: sine(1_000, 0.05, rate),
    "block": lambda rate: decaying(sine(2_200, 0.08, rate), rate, 0.01),
}


def mixed(seconds: float, rate: int, events: list[tuple[float, float, Sound]]) -> Audio:
    """Return the sum of sounds (start in seconds, gain, samples), scaled to a peak of 0.9."""
    audio = np.zeros(round(seconds * rate))
    for start_s, gain, sound in events:
        place = round(start_s * rate)
        part = sound[: max(0, len(audio) - place)]
        audio[place : place + len(part)] += gain * part
    scaled: Audio = (0.9 * audio / np.abs(audio).max()).astype(np.float32)
    return scaled


def metronome(
    bpm: float,
    seconds: float,
    rate: int = 22_050,
    click: str = "impulse",
    accent: float = 1,
    metre: int = 4,
    first_s: float = 0,
) -> Audio:
    """Return a click on each beat. The first click of each bar is louder by the factor `accent`."""
    times = np.arange(first_s, seconds, 60 / bpm)
    return mixed(
        seconds,
        rate,
        [(time, 1.0 if beat % metre == 0 else 1 / accent, CLICKS[click](rate)) for beat, time in enumerate(times)],
    )


def drums(
    bpm: float, seconds: float, rate: int = 22_050, kicks: tuple[float, ...] = (0, 2), hats: int = 8, swing: float = 0.0
) -> Audio:
    """Return bars of kicks at the beats `kicks`, snares on the second and fourth beat, and hats.

    Every second hat is late by `swing` of the distance between hats.
    """
    kick = decaying(
        np.sin(2 * np.pi * np.cumsum(50 + 120 * np.exp(-np.arange(round(0.3 * rate)) / rate / 0.03)) / rate), rate, 0.1
    )
    snare = decaying(0.3 * noise(0.2, rate) + 0.5 * sine(190, 0.2, rate), rate, 0.06)
    highpass = scipy.signal.butter(4, min(6_000, 0.35 * rate), "high", fs=rate, output="sos")
    hat = decaying(scipy.signal.sosfilt(highpass, 0.35 * noise(0.06, rate)), rate, 0.015)
    events = []
    for bar in range(int(seconds * bpm / 240) + 1):
        bar_of = [(beat, 1.0, kick) for beat in kicks] + [(beat, 0.8, snare) for beat in (1.0, 3.0)]
        bar_of += [((place + swing * (place % 2)) * 4 / hats, 0.35, hat) for place in range(hats)]
        events += [((4 * bar + beat) * 60 / bpm, gain, sound) for beat, gain, sound in bar_of]
    return mixed(seconds, rate, events)


@pytest.mark.parametrize("click", CLICKS)
@pytest.mark.parametrize(
    "bpm", rare_but((60, 97.3, 156.7, 180), [60, 64.9, 73, 85, 97.3, 108, 121.5, 140, 156.7, 173, 180])
)
def test_metronomes(bpm: float, click: str) -> None:
    tempo = measure_tempo(metronome(bpm, 8, click=click), 22_050)
    assert tempo.bpm == pytest.approx(bpm, rel=EXACT)
    assert 0.5 < tempo.confidence <= 1


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
@pytest.mark.parametrize(("bpm", "seconds", "click"), [(60, 9.1, "ping"), (97.3, 17, "burst"), (180, 30, "impulse")])
def test_metronomes_at_any_rate_and_length(bpm: float, seconds: float, click: str, rate: int) -> None:
    assert measure_tempo(metronome(bpm, seconds, rate, click), rate).bpm == pytest.approx(bpm, rel=EXACT)


@pytest.mark.parametrize(("accent", "metre"), [(1.5, 4), (3, 4), (2, 3), (1.4, 2)])
@pytest.mark.parametrize(("bpm", "first_s"), [(62, 0.013), (90, 0), (133.3, 0.3), (179, 0.111)])
def test_accents_and_an_offset_do_not_change_the_tempo(bpm: float, first_s: float, accent: float, metre: int) -> None:
    assert measure_tempo(
        metronome(bpm, 10, click="ping", accent=accent, metre=metre, first_s=first_s), 22_050
    ).bpm == pytest.approx(bpm, rel=EXACT)


@pytest.mark.parametrize("swing", [0, 0.33])
@pytest.mark.parametrize("hats", [8, 16])
@pytest.mark.parametrize("bpm", rare_but((61, 110, 174), [61, 72.5, 85, 93, 110, 127.7, 140, 160, 174]))
def test_drum_loops(bpm: float, hats: int, swing: float) -> None:
    assert measure_tempo(drums(bpm, 8.5, hats=hats, swing=swing), 22_050).bpm == pytest.approx(bpm, rel=EXACT)


@pytest.mark.parametrize("kicks", [(0, 1, 2, 3), (0, 2, 2.5), (0, 1.5, 2)])
@pytest.mark.parametrize(("bpm", "rate"), [(70, 44_100), (100, 22_050), (150, 8_000)])
def test_drum_loops_of_other_kicks(bpm: float, rate: int, kicks: tuple[float, ...]) -> None:
    assert measure_tempo(drums(bpm, 12, rate, kicks), rate).bpm == pytest.approx(bpm, rel=EXACT)


@pytest.mark.parametrize("level", [1e-4, 1e-2, 1e4])
def test_the_level_has_no_influence(level: float) -> None:
    audio = drums(97.3, 8)
    tempo, other = measure_tempo(audio, 22_050), measure_tempo(audio * np.float32(level), 22_050)
    assert other.bpm == pytest.approx(tempo.bpm, rel=1e-5)
    assert other.confidence == pytest.approx(tempo.confidence, abs=1e-3)


def still(kind: str, seconds: float, rate: int) -> Audio:
    generator = np.random.default_rng(1)
    count = round(seconds * rate)
    match kind:
        case "silence":
            audio = np.zeros(count)
        case "white noise":
            audio = generator.standard_normal(count)
        case "brown noise":
            audio = scipy.signal.lfilter([1], [1, -0.999], generator.standard_normal(count))
        case "crackle":
            audio = generator.uniform(0, 1, count) * (generator.uniform(0, 1, count) < 6 / rate)
        case "tone":
            audio = sine(220, seconds, rate)
        case _:
            audio = sum((sine(hertz, seconds, rate) for hertz in (261.6, 329.6, 392.0)), np.zeros(count))
    return audio.astype(np.float32)


@pytest.mark.parametrize("seconds", [0.3, 2, 8, rare(20)])
@pytest.mark.parametrize("kind", ["silence", "white noise", "brown noise", "crackle", "tone", "chord"])
def test_audio_without_beats_has_no_tempo(kind: str, seconds: float) -> None:
    for rate in (8_000, 44_100):
        tempo = measure_tempo(still(kind, seconds, rate), rate)
        assert tempo.bpm is None
        assert 0 <= tempo.confidence < 0.35


@pytest.mark.parametrize("samples", [1, 100, 6_000])
def test_audio_shorter_than_some_beats_has_no_tempo(samples: int) -> None:
    assert measure_tempo(metronome(180, 8)[:samples], 22_050).bpm is None


def test_audio_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        measure_tempo(np.full(100_000, np.nan, np.float32), 22_050)
