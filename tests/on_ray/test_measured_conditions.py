"""Conditions on measured features: columns of prepare, train --condition, and generate with bpm and key."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import load_dataset

from audiodiff_core.checkpoint import load_model, load_outline
from audiodiff_core.embeddings.measured import MeasuredConditions
from audiodiff_core.loops.features import measure_features
from audiodiff_core.pipeline import RequestCheck, load_pipeline
from audiodiff_core.sampling import REQUEST, ExecutionProfile
from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.generate.checked_rows import RowChecks
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.loop_rows import loop_rows
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.mel_data.measured import require_features
from audiodiff_platform.mel_data.mel_dataset import MelDataset
from audiodiff_platform.mel_data.original_datasets import open_dataset
from audiodiff_platform.mel_data.slice_schema import MEASURED, UNMEASURED_SCHEMA
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.inputs import load_training_inputs
from audiodiff_platform.train.options import TrainOptions
from tests.in_process import in_process
from tests.music import RATE, chords_at
from tests.random_models import save_conditional

PREPARED: dict[str, Any] = {"resolution": "64,32", "hop_length": 1_024, "num_workers": 1}
CONDITIONS = MeasuredConditions.of(["tempo", "key"])


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two slices of music at 90 bpm in C, at 140 bpm in A minor, and of a drone."""
    folder = tmp_path_factory.mktemp("music")
    drone = (0.1 * np.sin(2 * np.pi * 440 * np.arange(6 * RATE) / RATE)).astype(np.float32)
    sounds = {"slow": chords_at(90, 48, "major", 9), "fast": chords_at(140, 57, "minor", 14), "drone": drone}
    for name, audio in sounds.items():
        soundfile.write(folder / f"{name}.wav", audio, RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def measured(local_ray: None, music: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured") / "mel"
    with in_process():
        prepare(PrepareOptions(input_dir=str(music), output_dir=str(folder), **PREPARED))
    return folder


@pytest.fixture(scope="module")
def unmeasured(local_ray: None, music: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset without measured features, as earlier versions made it."""
    folder = tmp_path_factory.mktemp("unmeasured") / "mel"
    with in_process():
        prepare(PrepareOptions(input_dir=str(music), output_dir=str(folder), measure=False, **PREPARED))
    return folder


def _train_options(dataset: Path | str, run: Path, **more: Any) -> TrainOptions:
    values = {
        "dataset_name": str(dataset),
        "output_dir": str(run),
        "preset": "tiny-conditional",
        "condition": "key,tempo",
        "max_train_steps": 2,
        "train_batch_size": 4,
        "num_workers": 1,
        "report_to": (),
        "preview_count": 0,
    }
    return TrainOptions(**{**values, **more})


@pytest.fixture(scope="module")
def trained(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    with in_process():
        train(_train_options(measured, run))
    return run


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of random weights, of whose conditions much is heard."""
    return save_conditional(tmp_path_factory.mktemp("random") / "model", CONDITIONS.dim, conditions=CONDITIONS)


def _audio(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((folder / "audio").iterdir())]


def _manifest(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "manifest").to_pylist()
    return sorted(rows, key=lambda row: str(row["id"]))


def _options(model: Path, out: Path, **more: Any) -> GenerateOptions:
    return GenerateOptions(**{"model": str(model), "output_dir": str(out), "num_workers": 1, "steps": 1, **more})


def _file(folder: Path, rows: list[dict[str, Any]]) -> str:
    file = folder / "requests.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def _made_by_the_core(model: Path, rows: list[dict[str, Any]]) -> list[bytes]:
    ExecutionProfile.here().prepare_process()
    loops = load_pipeline(model).generate([REQUEST.validate_python({"steps": 1, **row}) for row in rows])
    return [loop.file(RATE, "wav") for loop in sorted(loops, key=lambda loop: loop.number)]


def test_prepare_measures_each_slice(measured: Path, music: Path) -> None:
    rows = [row for file in (measured / "data").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert len(rows) == 6
    for row in rows:
        samples, _ = soundfile.read(music / row["audio_file"], dtype="float32")
        start = round(row["start_s"] * RATE)
        own = measure_features(samples[start : start + round(row["duration_s"] * RATE)], RATE)
        assert row["key"] == own.key
        for name in ("tempo", "loudness", "brightness"):
            assert row[name] == (None if getattr(own, name) is None else pytest.approx(getattr(own, name), rel=1e-6))
    by_file = {row["audio_file"]: row for row in rows if row["slice"] == 0}
    assert by_file["slow.wav"]["tempo"] == pytest.approx(90, rel=0.02)
    assert by_file["fast.wav"]["tempo"] == pytest.approx(140, rel=0.02)
    assert by_file["drone.wav"]["tempo"] is None
    assert by_file["drone.wav"]["key"] is None
    assert by_file["drone.wav"]["brightness"] == pytest.approx(440, rel=0.05)


def test_the_other_columns_are_those_of_earlier_versions(measured: Path, unmeasured: Path) -> None:
    for file in sorted((measured / "data").glob("*.parquet")):
        table, earlier = pq.read_table(file), pq.read_table(unmeasured / "data" / file.name)
        assert table.column_names == [*UNMEASURED_SCHEMA.names, *MEASURED]
        assert table.select(UNMEASURED_SCHEMA.names).equals(earlier)
    assert json.loads((measured / "prepare.json").read_text())["measured"] == list(MEASURED)
    assert "measured" not in json.loads((unmeasured / "prepare.json").read_text())
    loaded = load_dataset(str(measured), split="train")
    assert loaded.column_names[-4:] == list(MEASURED)
    assert {type(row["tempo"]) for row in loaded} == {float, type(None)}


def test_a_dataset_of_an_earlier_version_goes_on_without_the_columns(
    unmeasured: Path, music: Path, tmp_path: Path
) -> None:
    audio, folder = tmp_path / "audio", tmp_path / "mel"
    shutil.copytree(music, audio)
    shutil.copytree(unmeasured, folder)
    options = PrepareOptions(input_dir=str(music), output_dir=str(folder), **PREPARED)
    before = (folder / "_SUCCESS").read_bytes()
    prepare(options)
    assert (folder / "_SUCCESS").read_bytes() == before
    soundfile.write(audio / "more.wav", chords_at(100, 50, "major", 10), RATE)
    assert prepare(options.model_copy(update={"input_dir": str(audio)}))["slices"] == 8
    columns = {tuple(pq.read_schema(file).names) for file in (folder / "data").glob("*.parquet")}
    assert columns == {tuple(UNMEASURED_SCHEMA.names)}


def test_what_cannot_be_measured_is_said(
    unmeasured: Path, music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stated: dict[str, Any] = {"input_dir": str(music), "output_dir": str(unmeasured), **PREPARED}
    prepare(PrepareOptions(**stated))
    words = f"the dataset in {unmeasured} was begun without measured features"
    assert f"{words}: it goes on without them" in capsys.readouterr().err
    prepare(PrepareOptions(measure=False, **stated))
    assert words not in capsys.readouterr().err
    with pytest.raises(ValueError, match=rf"^measure: {words} and cannot get them: use another folder, or omit"):
        prepare(PrepareOptions(measure=True, **stated))
    new = {**stated, "input_dir": str(music / "drone.wav"), "output_dir": str(tmp_path / "new")}
    assert prepare(PrepareOptions(measure=True, **new))["slices"] == 2


def test_a_measured_dataset_is_not_continued_without_measuring(measured: Path, music: Path) -> None:
    with pytest.raises(ValueError, match="measured"):
        prepare(PrepareOptions(input_dir=str(music), output_dir=str(measured), measure=False, **PREPARED))


def _published(measured: Path, folder: Path, **columns: Any) -> Path:
    """Write the slices of a dataset with other columns, as another program might."""
    (folder / "data").mkdir(parents=True)
    shutil.copy(measured / "mel_config.json", folder)
    table = pq.read_table(measured / "data")
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.remove_column(place) if values is None else table.set_column(place, name, pa.array(values))
    pq.write_table(table, folder / "data" / "train-000000.parquet")
    return folder


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"key": [1, 2, 3, 4, 5, 6]},
            "^dataset_name .*: column key is of type int64, must be names of keys, such ",
        ),
        (
            {"key": ["C", None, "8A", "Gb", "Am", "C"]},
            "^dataset_name .*: column key holds '8A': use names of keys",
        ),
        (
            {"tempo": [90, None, math.nan, 1, 2, 3]},
            "^dataset_name .*: column tempo holds nan: use null for slices",
        ),
        ({"tempo": ["90"] * 6}, "^dataset_name .*: column tempo is of type string, must be numbers in bpm$"),
        (
            {"tempo": [None] * 6},
            "^condition tempo: no slice of .* has a tempo, which needs a rhythm, in slices of",
        ),
    ],
)
def test_columns_of_other_programs_are_checked(
    measured: Path, tmp_path: Path, columns: dict[str, Any], words: str
) -> None:
    other = _published(measured, tmp_path / "other", **columns)
    with pytest.raises(ValueError, match=words):
        train(_train_options(other, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_condition_that_no_slice_has_is_refused(music: Path, tmp_path: Path) -> None:
    folder = tmp_path / "drone"
    prepare(PrepareOptions(input_dir=str(music / "drone.wav"), output_dir=str(folder), **PREPARED))
    with pytest.raises(ValueError, match=r"^condition tempo: .* has a tempo, .*; condition key: no slice .* in slices"):
        train(_train_options(folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_values_that_slices_have_are_shown(measured: Path, tmp_path: Path) -> None:
    rows = pq.read_table(measured / "data").to_pylist()
    tempos, keys = ([row[name] for row in rows if row[name] is not None] for name in ("tempo", "key"))
    spread = f"({min(tempos):.4g} to {max(tempos):.4g} bpm)"
    expected = f"tempo of {len(tempos)} of 6 slices {spread}; key of {len(keys)} of 6 slices"
    assert len(tempos) < 6
    for folder in (measured, _published(measured, tmp_path / "other")):
        assert require_features(str(folder), open_dataset(str(folder)), CONDITIONS) == expected


def test_the_digest_names_the_features(measured: Path, unmeasured: Path, tmp_path: Path) -> None:
    none: dict[str, Any] = dict.fromkeys(MEASURED)
    changes: list[dict[str, Any]] = [{}, {"tempo": [90.0] * 6}, {"key": ["C major"] * 6}, none]
    folders = [_published(measured, tmp_path / str(index), **columns) for index, columns in enumerate(changes)]
    folders.append(_published(unmeasured, tmp_path / "unmeasured"))
    digests = [open_dataset(str(folder)).digest for folder in folders]
    assert len(set(digests)) == 4
    assert digests[3] == digests[4], "without the columns, it is that of earlier versions"


def test_samples_come_with_the_encodings_of_their_slices(measured: Path, tmp_path: Path) -> None:
    data = MelDataset(str(measured))
    inputs = load_training_inputs(_train_options(measured, tmp_path))
    batch = inputs.order(seed=0).batch(range(data.rows))
    assert inputs.conditions == CONDITIONS
    assert batch.images is not None
    assert batch.encodings is not None
    by_image = {
        data.image(group, row).tobytes(): CONDITIONS.encoding(data.features(group, row))
        for group, (_, _, rows) in enumerate(data.groups)
        for row in range(rows)
    }
    expected = np.stack([by_image[image.numpy().tobytes()] for image in batch.images])
    assert np.array_equal(batch.encodings, expected)
    published = tmp_path / "published"
    shutil.copytree(measured / "data", published)
    shutil.copy(measured / "mel_config.json", published)
    opened = open_dataset(str(published))
    assert opened.measured
    assert [opened.features(0, row) for row in range(6)] == [
        data.features(group, row) for group, (_, _, rows) in enumerate(data.groups) for row in range(rows)
    ]


def test_latents_come_with_the_features_of_their_slices(measured: Path, vae: Path, tmp_path: Path) -> None:
    latents = str(tmp_path / "latents")
    encode(EncodeOptions(dataset_name=str(measured), latents=True, vae=str(vae), output_dir=latents, num_workers=1))
    more = {"preset": "tiny-conditional-latent", "vae": str(vae), "latents": latents}
    inputs = load_training_inputs(_train_options(measured, tmp_path / "run", **more))
    numbers = range(inputs.dataset.rows)
    batch = inputs.order(seed=0).batch(numbers)
    assert batch.images is None
    of_images = load_training_inputs(_train_options(measured, tmp_path / "run")).order(seed=0).batch(numbers)
    assert batch.encodings is not None
    assert of_images.encodings is not None
    assert np.array_equal(batch.encodings, of_images.encodings)
    assert batch.encodings.any()


def test_the_model_records_its_conditions(trained: Path) -> None:
    record = load_model(trained / "model").record
    assert record is not None
    assert record.conditions == CONDITIONS
    assert "condition" not in record.recipe
    assert json.loads((trained / "train.json").read_text())["condition"] == ["tempo", "key"]


def test_a_run_goes_on_with_the_same_conditions_only(trained: Path, measured: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert train(_train_options(measured, run, condition=("tempo", "key")))["steps"] == 2
    with pytest.raises(ValueError, match=r"condition is \['tempo', 'key'\] in the folder, \['tempo'\] in this job"):
        train(_train_options(measured, run, condition="tempo"))


def test_a_trained_model_starts_another_with_its_conditions(trained: Path, measured: Path, tmp_path: Path) -> None:
    start = {"preset": None, "from_pretrained": str(trained / "model"), "max_train_steps": 1}
    for condition, words in (
        ("tempo", r"^condition tempo with from_pretrained .*: the model was trained with condition tempo,key: set the"),
        ((), r"^condition none with from_pretrained .*: the model was trained with condition tempo,key: set the same"),
    ):
        with pytest.raises(ValueError, match=words):
            train(_train_options(measured, tmp_path / "run", condition=condition, **start))
    other = tmp_path / "other"
    shutil.copytree(trained / "model", other)
    stated = json.loads((other / "audiodiff.json").read_text())
    stated["conditions"][0]["low"] = 50.0
    (other / "audiodiff.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=r"the same conditions in other ranges: train a conditional preset from scrat"):
        train(_train_options(measured, tmp_path / "run", **{**start, "from_pretrained": str(other)}))
    train(_train_options(measured, tmp_path / "run", **start))
    record = load_model(tmp_path / "run" / "model").record
    assert record is not None
    assert record.conditions == CONDITIONS


def test_what_cannot_be_trained_is_refused(measured: Path, unmeasured: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = r"^condition tempo,key: .* has no measured features, the columns tempo, key, .*: prepare it again"
    with pytest.raises(ValueError, match=words):
        train(_train_options(unmeasured, run))
    with pytest.raises(ValueError, match=r"^preset tiny takes no encodings and no condition: omit them, or use one of"):
        train(_train_options(measured, run, preset=None))
    with pytest.raises(ValueError, match="condition tempo,key with encodings e: both state the encoding"):
        _train_options(measured, run, encodings="e")
    with pytest.raises(ValueError, match="condition"):
        _train_options(measured, run, condition="tempo,mood")
    assert _train_options(measured, run, condition="key, tempo").condition == ("tempo", "key")
    assert not run.exists()


def test_requests_state_tempo_and_key(random_model: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {},
        {"bpm": 90},
        {"bpm": 140, "key": "F#m"},
        {"key": "gb"},
        {"bars": 1, "bpm": 180},
        {"kind": "extend", "duration_s": 3, "bpm": 90},
    ]
    summary = generate(_options(random_model, tmp_path / "out", requests=_file(tmp_path, rows)))
    assert (summary["loops"], summary["failed"]) == (6, 0)
    made = _audio(tmp_path / "out")
    assert made == _made_by_the_core(random_model, rows)
    assert len(set(made)) == len(rows)
    requested = [(row["bpm"], row["requested_key"], row["bars"]) for row in _manifest(tmp_path / "out")]
    assert requested == [
        (None, None, None),
        (90.0, None, None),
        (140.0, "F# minor", None),
        (None, "F# major", None),
        (180.0, None, 1),
        (90.0, None, None),
    ]
    csv = tmp_path / "requests.csv"
    csv.write_text("bpm,key\n90,\n140,F#m\n")
    generate(_options(random_model, tmp_path / "csv", requests=str(csv)))
    assert _audio(tmp_path / "csv") == made[1:3]


def test_flags_are_defaults_of_rows(
    random_model: Path, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    common = ("--model", random_model, "--steps", 1, "--num_workers", 1)
    status, _ = command(*common, "--output_dir", tmp_path / "seeds", "--count", 2, "--bpm", 90, "--key", "Am")
    assert status == 0
    stated = [{"seed": seed, "bpm": 90, "key": "Am"} for seed in (0, 1)]
    assert _audio(tmp_path / "seeds") == _made_by_the_core(random_model, stated)
    rows: list[dict[str, Any]] = [{}, {"bpm": 140}, {"width": 40}, {"encoding": [0.5] * CONDITIONS.dim}]
    file = _file(tmp_path, rows)
    status, _ = command(*common, "--output_dir", tmp_path / "rows", "--requests", file, "--bpm", 90, "--key", "Am")
    assert status == 0
    expected = [{"key": "Am", "bpm": 90, **row} for row in rows[:3]] + rows[3:]
    assert _audio(tmp_path / "rows") == _made_by_the_core(random_model, expected)
    status, _ = command(*common, "--output_dir", tmp_path / "sweep", "--count", 1, "--sweep", "key=C,Am")
    assert status == 0
    assert len(set(_audio(tmp_path / "sweep"))) == 2


def test_bad_rows_are_named_before_weights_are_loaded(random_model: Path, model: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"bpm": 90},
        {"key": "H"},
        {"bpm": 300},
        {"loudness": -14},
        {"key": "C", "encoding": [0.5] * CONDITIONS.dim},
        {"prompt": "choir"},
    ]
    with pytest.raises(ValueError, match="5 of 6 rows are bad") as raised:
        generate(_options(random_model, tmp_path / "out", requests=_file(tmp_path, rows)))
    for words in (
        "row 2: key: H: use a tonic and a mode",
        "row 3: bpm: 300: the model is conditioned on a tempo of 40 to 240 bpm",
        "row 4: loudness: -14: the model is not conditioned on loudness, only on tempo, key: omit it",
        "row 5: key: with encoding: both state the encoding",
        "row 6: prompt: choir: the model has no encoder, it is conditioned on tempo, key: omit it",
    ):
        assert words in str(raised.value)
    with pytest.raises(ValueError, match="row 1: bpm: 90 without bars: the model is not conditioned on tempo, and has"):
        generate(_options(model, tmp_path / "out", requests=_file(tmp_path, rows[:1])))
    with pytest.raises(ValueError, match=r"^key C major: the model is not conditioned on key, and has no measured"):
        generate(_options(model, tmp_path / "out", count=1, key="C"))
    with pytest.raises(ValueError, match="key with prompt: both state the encoding, set only one of them"):
        _options(model, tmp_path / "out", count=1, key="C", prompt="choir")
    with pytest.raises(ValueError, match=r"^encoder a/e: the model has no encoder, it is conditioned on tempo"):
        generate(_options(random_model, tmp_path / "out", requests=_file(tmp_path, rows[:1]), encoder="a/e"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tempo", "defaults", "row", "expected"),
    [
        (True, {"key": "A minor"}, {"encoding": None}, {"key": "A minor"}),
        (True, {"key": "A minor"}, {"key": None}, {"key": None}),
        (True, {"prompt": "choir"}, {"key": None}, "prompt: choir: the model has no encoder"),
        (False, {"width": 32}, {"bars": None, "duration_s": None}, {"width": 32}),
        (False, {"bars": 2, "bpm": 120.0}, {"bars": 4}, {"bars": 4, "bpm": 120.0}),
        (False, {"bars": 2, "bpm": 120.0}, {"width": 32}, {"bars": None, "bpm": None, "width": 32}),
        (False, {"bars": 2, "bpm": 120.0}, {"bars": None}, {"bars": None, "bpm": None}),
        (False, {"bpm": 120.0}, {"width": 32}, {"bpm": None, "width": 32}),
        (False, {"bpm": 120.0}, {}, "bpm: 120 without bars"),
        (True, {"bars": 2, "bpm": 90.0}, {"width": 32}, {"bars": None, "bpm": 90.0, "width": 32}),
        (True, {"bars": 2, "bpm": 90.0}, {"width": 32, "encoding": [0.5] * CONDITIONS.dim}, {"bpm": None}),
        (True, {"bars": 2, "bpm": 90.0}, {"encoding": [0.5] * CONDITIONS.dim}, {"bars": 2, "bpm": 90.0}),
    ],
)
def test_values_of_a_row_displace_the_defaults_that_they_contradict(
    random_model: Path,
    model: Path,
    tempo: bool,
    defaults: dict[str, Any],
    row: dict[str, Any],
    expected: dict[str, Any] | str,
) -> None:
    check = RequestCheck(load_outline(random_model if tempo else model))
    (loop,) = RowChecks(check, defaults).checked([row])
    if isinstance(expected, str):
        assert (loop.reason or "").startswith(f"row 1: {expected}")
    else:
        assert loop.request is not None, loop.reason
        request = json.loads(loop.request)
        assert {name: request.get(name) for name in expected} == expected


def test_a_sweep_knows_keys_in_any_spelling(random_model: Path, tmp_path: Path) -> None:
    check = RequestCheck(load_outline(random_model))

    def ids(sweep: str) -> list[str]:
        return [loop.id for loop in loop_rows(_options(random_model, tmp_path, count=1, sweep=(sweep,)), check).rows]

    assert ids("key=A minor,A# minor,Bb") == [
        f"0000000000-key{key}" for key in ("A-minor", "Asharp-minor", "Asharp-major")
    ]
    with pytest.raises(ValueError, match=r"^sweep key=Bbm: stated twice, list each value once$"):
        ids("key=A#m,Bbm")
    with pytest.raises(ValueError, match=r"^sweep key=H: key H: use a tonic and a mode"):
        ids("key=C,H")


def test_a_trained_model_generates_with_what_it_records(trained: Path, tmp_path: Path) -> None:
    generate(_options(trained / "model", tmp_path / "out", count=1, bpm=90, key="C", guidance_scale=2.0))
    (row,) = _manifest(tmp_path / "out")
    assert (row["bpm"], row["requested_key"], row["guidance_scale"], row["reason"]) == (90.0, "C major", 2.0, None)


def test_a_network_that_takes_beats_is_trained_and_generates(local_ray: None, music: Path, tmp_path: Path) -> None:
    dataset, run, more = tmp_path / "mel", tmp_path / "run", tmp_path / "more"
    with in_process():
        prepare(PrepareOptions(input_dir=str(music), output_dir=str(dataset), **{**PREPARED, "resolution": "64"}))
        train(_train_options(dataset, run, preset="tiny-conditional-bands"))
        train(_train_options(dataset, more, preset=None, from_pretrained=str(run / "model")))
    beats = load_model(more / "model").unet.beats
    assert (beats.first, beats.anchors, beats.columns_per_minute) == (0, 32, 60 * RATE / 1_024)
    rows: list[dict[str, Any]] = [
        {"id": "a", "seed": 1, "bpm": 90},
        {"id": "b", "seed": 1, "bpm": 90, "seamless": True, "width": 44},
        {"id": "c", "seed": 1, "key": "C", "guidance_scale": 2.0},
    ]
    generate(_options(more / "model", tmp_path / "out", requests=_file(tmp_path, rows)))
    assert _audio(tmp_path / "out") == _made_by_the_core(more / "model", rows)
