"""Tempo, seam and level of signals with known values."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from audiodiff_core.audio import decode_audio
from audiodiff_core.loops import cut_loop, level_db, loop_length, seam_score, tempo_bpm, whole_beats
from audiodiff_core.loops.beats import track_beats

RATE = 22_050
Audio = npt.NDArray[np.float32]


def sine(seconds: float, hertz: float) -> Audio:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)


def clicks(seconds: float, bpm: float, first_s: float = 0.0) -> Audio:
    """Return a signal with a short noise burst on each beat, over a quiet tone."""
    audio = 0.01 * sine(seconds, 220)
    decay = (np.random.default_rng(0).standard_normal(1_000) * np.exp(-np.arange(1_000) / 150)).astype(np.float32)
    for start in np.arange(first_s, seconds - 0.1, 60 / bpm):
        place = round(start * RATE)
        audio[place : place + 1_000] += 0.3 * decay
    return audio


def test_tempo_of_a_click_track() -> None:
    assert tempo_bpm(clicks(8, 120), RATE) == pytest.approx(120, rel=0.005)


def test_seam_of_whole_periods_is_not_heard() -> None:
    assert seam_score(sine(2, 441), RATE) <= 1.05


def test_seam_of_a_jump_is_heard() -> None:
    rising = sine(2, 441) * np.linspace(0, 1, 2 * RATE, dtype=np.float32)
    assert seam_score(rising, RATE) > 3
    two_tones = np.concatenate([sine(1, 300), sine(1, 3_000)])
    assert seam_score(two_tones, RATE) > 3


def test_seam_of_a_rotated_jump_is_not_heard() -> None:
    two_tones = np.concatenate([sine(1, 300), sine(1, 3_000)])
    assert seam_score(np.roll(two_tones, RATE // 2), RATE) < 1.05


def test_seam_of_silence_is_zero() -> None:
    assert seam_score(np.zeros(RATE, np.float32), RATE) == 0


def test_seam_of_too_little_audio_is_refused() -> None:
    with pytest.raises(ValueError, match="audio of 15 samples: a seam score needs at least 16"):
        seam_score(np.zeros(15, np.float32), RATE)


def test_seam_of_a_cut_wave_or_a_click_is_heard() -> None:
    assert seam_score(sine(2 + 1 / 441 / 4, 441), RATE) > 3, "cut in the middle of a period"
    assert seam_score(sine(2 + 1 / 441 / 2, 441), RATE) > 3, "cut at a zero crossing, but the wrong one"
    clicking = sine(2, 441)
    clicking[0] += 0.5
    assert seam_score(clicking, RATE) > 10
    elsewhere = sine(2, 441)
    elsewhere[RATE] += 0.5
    assert seam_score(elsewhere, RATE) <= 1.05


def test_seam_of_a_step_that_nobody_hears_is_none() -> None:
    noise = np.random.default_rng(1).standard_normal(2 * RATE).astype(np.float32)
    assert seam_score(sine(2, 441) + 1e-5 * noise, RATE) <= 1.05


def test_level() -> None:
    assert level_db(sine(1, 441)) == pytest.approx(-3.01, abs=0.01)
    assert level_db(sine(1, 441) * np.float32(0.1)) == pytest.approx(-23.01, abs=0.01)
    assert level_db(np.ones(100, np.float32)) == pytest.approx(0)
    assert level_db(np.zeros(100, np.float32)) == pytest.approx(-200)


def test_beats_of_a_loop_include_its_ends() -> None:
    times = track_beats(clicks(4, 120), RATE).times_s
    assert times == pytest.approx(np.arange(9) / 2, abs=0.05)
    assert (times[0], times[-1]) == (0, 4)


def test_beats_of_silence_are_none() -> None:
    assert len(track_beats(np.zeros(RATE, np.float32), RATE).times_s) == 0


def test_a_cut_loop_has_whole_bars_from_the_first_beat() -> None:
    audio = clicks(7.3, 120, first_s=0.7)
    loop, info = cut_loop(audio, RATE)
    assert (info.beats, info.beats_per_bar) == (12, 4)
    assert info.bpm(len(loop), RATE) == pytest.approx(120, rel=0.01)
    one_bar, info = cut_loop(audio, RATE, bars=1, beats_per_bar=3)
    assert (info.beats, info.beats_per_bar) == (3, 3)
    assert len(one_bar) == pytest.approx(1.5 * RATE, rel=0.02)


@pytest.mark.parametrize(("bpm", "bars"), [(120, 2), (123.4, 3), (97, 1), (160, 2)])
def test_a_loop_for_a_tempo_has_its_exact_length_and_keeps_its_pitch(bpm: float, bars: int) -> None:
    audio = clicks(9.3, 120, first_s=0.7)
    loop, info = cut_loop(audio, RATE, bars=bars, bpm=bpm)
    assert len(loop) == round(bars * 4 * 60 / bpm * RATE) == loop_length(bars, bpm, RATE)
    assert info.bpm(len(loop), RATE) == pytest.approx(bpm, rel=1e-4)
    spectrum = np.abs(np.fft.rfft(loop))
    low = spectrum[: round(400 * len(loop) / RATE)]
    assert low.argmax() * RATE / len(loop) == pytest.approx(220, abs=1)
    grid = loop_length(1, bpm, RATE) / 4
    onsets = [np.abs(loop[round(beat * grid) :][: RATE // 20]).max() for beat in range(bars * 4)]
    assert min(onsets) > 0.1, "a click on every beat of the new tempo"


def test_a_tempo_of_twice_the_audios_own_takes_twice_the_beats() -> None:
    audio = clicks(8, 80)
    loop, info = cut_loop(audio, RATE, bpm=165)
    assert info.beats == 20
    assert len(loop) == loop_length(5, 165, RATE)


def test_a_loop_begins_just_before_its_first_attack() -> None:
    for first_s in (0.35, 0.7):
        audio = clicks(9, 97, first_s=first_s)
        loop, _ = cut_loop(audio, RATE, bars=2)
        start = next(place for place in range(len(audio)) if np.array_equal(audio[place : place + 1_000], loop[:1_000]))
        assert 0 <= first_s * RATE - start < 0.012 * RATE
        assert len(loop) == pytest.approx(8 * 60 / 97 * RATE, abs=0.012 * RATE)


def test_the_end_fades_into_what_came_before_the_start() -> None:
    """Check that the tone continues over the wrap, although its period does not match the beats."""
    tone = 0.5 * sine(9, 211.3)
    audio = tone + clicks(9, 97, first_s=0.35)
    loop, _ = cut_loop(audio, RATE, bars=1)
    start = next(place for place in range(len(audio)) if np.array_equal(audio[place : place + 1_000], loop[:1_000]))
    assert np.abs(loop[-20:] - audio[start - 20 : start]).max() < 0.02, "the last samples are those before the first"
    assert np.array_equal(loop[: -round(0.02 * RATE)], audio[start : start + len(loop) - round(0.02 * RATE)])
    assert np.abs(loop).max() < 1.1 * np.abs(audio).max()


def test_a_loop_without_beats_is_the_beginning_of_the_audio() -> None:
    audio = sine(5, 211.3)
    loop, info = cut_loop(audio, RATE, bars=1, bpm=60, tracker=None)
    assert len(loop) == 4 * RATE
    assert info.beats == 4
    assert np.array_equal(loop[RATE:], audio[RATE : 4 * RATE])
    assert abs(loop[0] - audio[4 * RATE]) < 0.05, "the first sample is the one that followed the last"
    assert seam_score(loop, RATE) < seam_score(audio[: 4 * RATE], RATE) / 5


def test_real_loops_are_cut_at_their_length(loops: Path) -> None:
    for name, beats in (("loop_mika", 16), ("loop_compus", 16)):
        audio = decode_audio(loops / f"{name}.flac", RATE)
        loop, info = cut_loop(audio, RATE)
        assert (info.beats, len(loop)) == (beats, len(audio)), name


def test_the_metre_of_a_loop_is_a_whole_number_of_beats() -> None:
    info = whole_beats(clicks(5.9, 120), RATE)
    assert info.beats == 12
    assert info.bpm(round(5.9 * RATE), RATE) == pytest.approx(12 * 60 / 5.9)
    assert whole_beats(clicks(1.2, 240), RATE).beats == 5
    assert whole_beats(sine(0.1, 300), RATE).beats is None, "no tempo, no beats"


def test_a_loop_is_cut_at_the_same_beats_at_any_level() -> None:
    audio = clicks(7.3, 120, first_s=0.7)
    loop, info = cut_loop(audio, RATE)
    for level in (1e-4, 1e-2):
        quiet, quiet_info = cut_loop(audio * np.float32(level), RATE)
        assert quiet_info == info
        np.testing.assert_allclose(quiet / np.float32(level), loop, atol=1e-5)
    exact = np.float32(2**-13)
    np.testing.assert_array_equal(
        cut_loop(audio * exact, RATE, bars=2, bpm=123.4)[0], cut_loop(audio, RATE, bars=2, bpm=123.4)[0] * exact
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bars": 0}, "bars 0"),
        ({"bars": 9}, r"bars 9 of 4 beats: the audio has \d+ beats"),
        ({"bpm": 1_000}, "bpm 1000"),
        ({"bpm": float("nan")}, "bpm nan"),
        ({"beats_per_bar": 0}, "beats_per_bar 0"),
        ({"tracker": "madmom"}, "tracker madmom: must be librosa or beat_this"),
        ({"tracker": None}, "tracker None needs bars and bpm"),
        ({"tracker": None, "bars": 9, "bpm": 60}, "bars 9 at bpm 60 are 793800 samples, the audio has 88200"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut_loop(clicks(4, 120), RATE, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((2, 100), np.float32), r"audio of shape \(2, 100\)"),
        (np.zeros(0, np.float32), r"audio of shape \(0,\)"),
        (np.full(RATE, np.nan, np.float32), "audio holds NaN"),
        (np.zeros(RATE, np.float32), "a whole bar of 4 beats: the audio has 0 beats"),
    ],
)
def test_unusable_audio_is_named(audio: Audio, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut_loop(audio, RATE)


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "beat_this", None)
    with pytest.raises(ValueError, match=r"tracker beat_this is not installed .*audiodiff\[beats\]"):
        track_beats(clicks(4, 120), RATE, "beat_this")


def test_beat_this_gives_downbeats_and_its_weights_are_fetched_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Check the tracker with a stand-in for the package.

    The tests run without the package, because the package downloads its weights.
    """
    loaded = []

    class Audio2Beats:
        def __init__(self, checkpoint_path: str) -> None:
            loaded.append(Path(checkpoint_path).read_bytes())

        def __call__(self, signal: Audio, sr: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
            return np.arange(0.2, len(signal) / sr, 0.5), np.array([1.2, 3.2])

    package = SimpleNamespace(CHECKPOINT_URL=(tmp_path / "published").as_uri(), Audio2Beats=Audio2Beats)
    monkeypatch.setitem(sys.modules, "beat_this", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "beat_this.inference", package)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    audio = clicks(6, 120, first_s=0.2) * np.linspace(0.5, 1, 6 * RATE, dtype=np.float32)  # all beats differ
    with pytest.raises(ValueError, match=r"tracker beat_this: cannot download its weights .*beat_this-final0\.ckpt"):
        cut_loop(audio, RATE, tracker="beat_this")
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "final0.ckpt").write_bytes(b"weights")
    for _ in range(2):
        beats = track_beats(audio, RATE, "beat_this")
        assert beats.downbeats == (2, 6)
        (tmp_path / "published" / "final0.ckpt").write_bytes(b"others")
    assert loaded == [b"weights", b"weights"]
    loop, info = cut_loop(audio, RATE, bars=1, tracker="beat_this")
    assert info.beats == 4
    start = next(place for place in range(len(audio)) if np.array_equal(audio[place : place + 1_000], loop[:1_000]))
    assert start == pytest.approx(1.2 * RATE, abs=0.012 * RATE)
