"""Measured features of synthesized audio, and their encodings."""

import json
from typing import Any

import numpy as np
import pydantic
import pytest

from audiodiff_core.audio import Samples
from audiodiff_core.audio.key_names import MODES, TONICS, key_name, key_parts
from audiodiff_core.embeddings.measured import CONDITION_NAMES, KeyCondition, MeasuredConditions, NumberCondition
from audiodiff_core.loops.features import Features, SliceMeter, brightness_hz, measure_features
from audiodiff_core.loops.tempo import TEMPO_RANGE_BPM
from tests.music import RATE, chords_at

ALL = MeasuredConditions.of(CONDITION_NAMES)


def sine(hertz: float, seconds: float) -> Samples:
    audio: Samples = (0.1 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)
    return audio


@pytest.mark.parametrize(("bpm", "root", "key"), [(90.0, 48, "C major"), (140.0, 57, "A minor")])
def test_music_has_all_features(bpm: float, root: int, key: str) -> None:
    measured = measure_features(chords_at(bpm, root, "minor" if "minor" in key else "major", 12), RATE)
    assert measured.tempo == pytest.approx(bpm, rel=0.01)
    assert measured.key == key
    assert measured.loudness is not None
    assert -30 < measured.loudness < -6
    assert measured.brightness is not None
    assert 200 < measured.brightness < 1_500


def test_features_that_are_not_defined_are_none() -> None:
    assert measure_features(np.zeros(RATE, np.float32), RATE) == Features()
    drone = measure_features(sine(440, 3), RATE)
    assert (drone.tempo, drone.key) == (None, None)
    assert drone.loudness == pytest.approx(-23.7, abs=0.5)
    assert drone.brightness == pytest.approx(440, rel=0.05)
    assert measure_features(sine(440, 3) * np.float32(1e-5), RATE).loudness is None
    assert measure_features(sine(440, 0.01), RATE).tempo is None
    assert measure_features(np.ones(1, np.float32), 4_000).loudness is None


def test_slices_that_share_most_of_their_audio_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    audio = np.arange(3_000, dtype=np.float32)

    def noted(samples: Samples, sample_rate: int) -> Features:
        measured.append(int(samples[0]))
        return Features(brightness=float(sample_rate + samples[0]))

    monkeypatch.setattr("audiodiff_core.loops.features.measure_features", noted)
    meter = SliceMeter(1_000)
    starts = [0, 100, 200, 250, 300, 1_600, 1_900]
    values = [meter.features(audio[start : start + 1_000], start / 1_000).brightness for start in starts]
    assert measured == [0, 300, 1_600, 1_900]
    assert values == [1_000, 1_000, 1_000, 1_000, 1_300, 2_600, 2_900]


def test_what_is_shared_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def noted(samples: Samples, sample_rate: int) -> Features:
        return Features(brightness=float(samples[0]))

    def measured(size: int, step: int) -> list[float | None]:
        """Return the starts in samples of the audio of which five slices have their features."""
        meter, audio = SliceMeter(100), np.arange(size + 4 * step, dtype=np.float32)
        starts = range(0, 4 * step + 1, step)
        return [meter.features(audio[start : start + size], start / 100).brightness for start in starts]

    monkeypatch.setattr("audiodiff_core.loops.features.measure_features", noted)

    assert measured(120 * 100, 800) == [0, 800, 1_600, 2_400, 3_200], "of slices of two minutes, 30 s are measured"
    assert measured(120 * 100, 700) == [0, 0, 1_400, 1_400, 2_800]
    assert measured(1_023, 256) == [0, 0, 512, 512, 1_024], "the step of an overlap of 0.75 is rounded"


def test_brightness_is_the_mean_frequency_at_any_level() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    assert brightness_hz(noise, RATE) == pytest.approx(RATE / 4, rel=0.02)
    assert brightness_hz(noise * np.float32(1e-3), RATE) == pytest.approx(brightness_hz(noise, RATE), rel=1e-4)
    for hertz in (300, 3_000):
        assert brightness_hz(sine(hertz, 1), RATE) == pytest.approx(hertz, rel=0.02)
    at_the_end = np.zeros(RATE, np.float32)
    at_the_end[-1] = 1
    assert brightness_hz(at_the_end, RATE) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((f"{tonic} {mode}", f"{tonic} {mode}") for tonic in TONICS for mode in MODES),
        ("C", "C major"),
        ("Am", "A minor"),
        ("c minor", "C minor"),
        ("f#m", "F# minor"),
        ("Gb", "F# major"),
        ("b", "B major"),
        ("bb", "A# major"),
        ("Bbm", "A# minor"),
        ("B♭ MINOR", "A# minor"),
        ("Cb", "B major"),
        ("E#", "F major"),
        (" D  maj ", "D major"),
        ("BB MAJOR", "A# major"),
        ("EB minor", "D# minor"),
        ("ABm", "G# minor"),
        ("Fsharp-minor", "F# minor"),
        ("F sharp minor", "F# minor"),
        ("b-flat", "A# major"),
        ("C#-minor", "C# minor"),
    ],
)
def test_keys_have_one_name(text: str, name: str) -> None:
    assert key_name(text) == name
    assert key_name(key_name(text)) == name


@pytest.mark.parametrize("text", ["", "H", "C dorian", "CM7", "Cbb", "m", "CM", "C-", "Fs minor"])
def test_other_texts_are_no_keys(text: str) -> None:
    with pytest.raises(ValueError, match=f"^key {text}: use a tonic and a mode, such as C, Am, F# minor or Bb major$"):
        key_parts(text)


def number_of(condition: NumberCondition, part: Any) -> float:
    """Return the number that a part encodes."""
    place = float(np.arange(condition.anchors) @ part / part.sum()) / (condition.anchors - 1)
    if condition.name == "loudness":
        return condition.low + place * (condition.high - condition.low)
    return float(condition.low * (condition.high / condition.low) ** place)


def test_an_encoding_states_the_features() -> None:
    features: dict[str, Any] = {"tempo": 97.3, "key": "F# minor", "loudness": -17.2, "brightness": 1_234.0}
    encoding = ALL.encoding(features)
    assert encoding.dtype == np.float32
    assert encoding.shape == (ALL.dim,)
    parts = dict(zip(ALL.names, np.split(encoding, np.cumsum(ALL.sizes)[:-1]), strict=True))
    for condition in ALL.root:
        if isinstance(condition, NumberCondition):
            assert number_of(condition, parts[condition.name]) == pytest.approx(features[condition.name], rel=5e-3)
    tonic, mode = np.split(parts["key"], [len(TONICS)])
    assert (TONICS[tonic.argmax()], MODES[mode.argmax()]) == ("F#", "minor")
    assert np.count_nonzero(parts["key"]) == 2
    assert 0.4 < np.square(encoding).mean() < 1.2


def test_unknown_features_are_zero_and_others_do_not_move() -> None:
    assert not ALL.encoding({}).any()
    whole, some = ALL.encoding({"tempo": 120.0, "key": "C major"}), ALL.encoding({"tempo": None, "key": "C major"})
    tempo = slice(0, ALL.sizes[0])
    assert not some[tempo].any()
    assert np.array_equal(np.delete(whole, tempo), np.delete(some, tempo))


def test_double_the_tempo_has_other_anchors_and_ranges_end() -> None:
    tempo = MeasuredConditions.of(["tempo"])
    one, other = (tempo.encoding({"tempo": bpm}) for bpm in (70.0, 140.0))
    assert not (one * other).any()
    low, high = TEMPO_RANGE_BPM
    assert np.array_equal(tempo.encoding({"tempo": low / 2}), tempo.encoding({"tempo": low}))
    assert np.array_equal(tempo.encoding({"tempo": high + 9}), tempo.encoding({"tempo": high}))
    assert tempo.encoding({"tempo": high})[-1] > 0
    tempo.require_range("tempo", high)
    with pytest.raises(ValueError, match=r"^the model is conditioned on a tempo of 40 to 240 bpm$"):
        tempo.require_range("tempo", 241.0)


def test_conditions_are_recorded_as_they_are_encoded() -> None:
    some = MeasuredConditions.of(["key", "tempo"])
    assert some.names == ("tempo", "key")
    recorded = json.loads(some.model_dump_json())
    assert recorded[1] == {"name": "key"}
    assert recorded[0] == {"name": "tempo", "low": 40.0, "high": 240.0, "anchors": 32}
    assert (recorded[0]["low"], recorded[0]["high"]) == TEMPO_RANGE_BPM, "what is measured can be requested"
    recorded[0]["anchors"] = 8
    other = MeasuredConditions.model_validate(recorded)
    assert other.dim == some.dim - 24
    assert other != some


@pytest.mark.parametrize(
    "recorded",
    [
        [],
        [{"name": "key"}, {"name": "key"}],
        [{"name": "mood"}],
        [{"name": "key", "low": 1}],
        [{"name": "tempo", "low": 0, "high": 10, "anchors": 4}],
        [{"name": "loudness", "low": 10, "high": 0, "anchors": 4}],
        [{"name": "tempo", "low": 40, "high": 240, "anchors": 1 << 30}],
        [{"name": "tempo", "low": 40, "high": float("inf"), "anchors": 4}],
    ],
)
def test_records_that_cannot_be_are_refused(recorded: Any) -> None:
    with pytest.raises(pydantic.ValidationError):
        MeasuredConditions.model_validate(recorded)


def test_columns_and_conditions_have_the_same_names() -> None:
    assert tuple(Features.__dataclass_fields__) == CONDITION_NAMES == ALL.names
    assert isinstance(ALL.root[1], KeyCondition)
