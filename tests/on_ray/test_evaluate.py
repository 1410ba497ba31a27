"""evaluate: metrics of the items on each side, independent of the number of workers.

The sizes are always stated, and mistakes are named.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from audiodiff_core.audio import Samples, encode_audio
from audiodiff_core.checkpoint import ModelRecord, load_model, record_metrics, save_model
from audiodiff_core.embeddings.audio_encoder import AudioEncoder
from audiodiff_core.evaluation import MAX_SAMPLE_ITEMS, Gathered, Items, compare, rank
from audiodiff_core.evaluation.embedders import EmbedderItem, items_of
from audiodiff_core.evaluation.features import logmel_stats
from audiodiff_core.evaluation.frechet import FeatureStatistics, frechet_distance
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.vocoder import GriffinLim
from audiodiff_platform.evaluate import job as evaluate_module
from audiodiff_platform.evaluate import sides as sides_module
from audiodiff_platform.evaluate.job import evaluate
from audiodiff_platform.evaluate.options import EvaluateOptions
from audiodiff_platform.evaluate.portions import digest
from audiodiff_platform.evaluate.sides import open_sides
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.mel_data.mel_dataset import VALIDATION_SPLIT, MelDataset
from audiodiff_platform.storage import Folder, commits
from tests.poison import expanding_flac


@pytest.fixture(scope="module")
def evaluation(dataset: Path, few_loops: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The evaluation of the dataset against the audio that it was prepared from, by two workers."""
    report = tmp_path_factory.mktemp("report")
    options = {
        "reference": str(dataset),
        "candidate": str(few_loops),
        "output_dir": str(report),
        "round_trips": 6,
        "num_workers": 2,
    }
    return {**evaluate(EvaluateOptions(**options)), "report": json.loads((report / "report.json").read_text())}


def _samples(item: EmbedderItem) -> Samples:
    assert item.samples is not None
    return item.samples


def _heard(folder: Path, mel: Mel) -> dict[str, list[EmbedderItem]]:
    return {file.relative_to(folder).as_posix(): list(items_of(file, mel)) for file in folder.rglob("*.flac")}


@pytest.fixture(scope="module")
def sides(dataset: Path, few_loops: Path) -> tuple[Items, Items]:
    """All items of the dataset and of the audio, in the order of the portions."""
    real = MelDataset(str(dataset))
    heard = _heard(few_loops, Mel(real.mel))
    names = sorted(heard, key=lambda name: hashlib.blake2b(name.encode(), digest_size=16).digest())
    candidate = logmel_stats(np.stack([item.image for name in names for item in heard[name]]))
    return Items(logmel_stats(real.all_images()), real.column("audio_file")), Items(
        candidate, [name for name in names for _ in heard[name]]
    )


def _gathered(items: Items, at_most: int) -> Gathered:
    """Return the side computed from all of its rows."""
    ranks = [rank(track, items.tracks[:row].count(track)) for row, track in enumerate(items.tracks)]
    rows = sorted(sorted(range(len(items)), key=ranks.__getitem__)[:at_most])
    return Gathered(FeatureStatistics.of(items.features), len(set(items.tracks)), items.at(np.array(rows)))


def _unlike(figures: dict[str, Any], items: tuple[Items, Items], at_most: int) -> dict[str, Any]:
    """Return the figures that differ from the figures of the rows.

    The Fréchet distance may differ by the error of the summation order. There are fewer items than features here, so
    this error is about the number of features times the root of 2^-53, of the largest variance (`test_gathering.py`).
    """
    reference, candidate = (_gathered(side, at_most) for side in items)
    expected = compare(reference, candidate)
    error = 48 * 2**-26.5 * max(side.features.var(axis=0).max() for side in items)
    summed = {
        name
        for name in ("frechet", "frechet_low", "frechet_high")
        if figures[name] == pytest.approx(expected[name], abs=error)
    }
    return {
        name: (figures[name], value)
        for name, value in expected.items()
        if figures[name] != value and name not in summed
    }


def test_the_figures_are_exactly_those_of_all_rows(evaluation: dict[str, Any], sides: tuple[Items, Items]) -> None:
    assert _unlike(evaluation, sides, MAX_SAMPLE_ITEMS) == {}
    assert (evaluation["n_paired_reference"], evaluation["n_paired_candidate"], evaluation["n_paired_held_out"]) == (
        *map(len, sides),
        0,
    )


@pytest.mark.soak_short
@pytest.mark.workers
def test_samples_of_larger_sides_are_the_same_of_any_workers_and_after_an_interruption(
    sides: tuple[Items, Items], dataset: Path, few_loops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (evaluate_module, sides_module):
        monkeypatch.setattr(module, "MAX_SAMPLE_ITEMS", 6)
    options: dict[str, Any] = {"reference": str(dataset), "candidate": str(few_loops), "round_trips": 3}
    alone = evaluate(EvaluateOptions(**options, num_workers=1))
    assert _unlike(alone, sides, 6) == {}
    assert (alone["n_paired_reference"], alone["n_paired_candidate"]) == (6, 6)
    assert min(alone["n_reference"], alone["n_candidate"]) > 6

    blocked, work = tmp_path / "report.json", tmp_path / "_evaluate"
    blocked.mkdir()
    with pytest.raises(OSError, match=r"report\.json"):
        evaluate(EvaluateOptions(**options, num_workers=2, output_dir=str(tmp_path)))
    portions = [json.loads(file.read_text()) for file in work.glob("*/portions/*.json")]
    assert all(len(portion["tracks"]) <= 6 for portion in portions)
    assert any(portion["left_out"] for portion in portions)
    for commit in sorted(work.glob("*/_commits/*.json"))[1:]:
        commit.unlink()
    blocked.rmdir()
    resumed = evaluate(EvaluateOptions(**options, num_workers=2, output_dir=str(tmp_path)))
    assert {**resumed, "seconds": 0} == {**alone, "seconds": 0}
    report = json.loads(blocked.read_text())
    assert {pair["candidate"] for pair in report["closest"]} <= set(_gathered(sides[1], 6).sample.tracks)
    assert len(report["closest"]) == 6


def test_the_figures_are_those_of_the_items(
    evaluation: dict[str, Any], sides: tuple[Items, Items], dataset: Path
) -> None:
    real, (reference, candidate) = MelDataset(str(dataset)), sides
    statistics = (FeatureStatistics.of(items.features) for items in (candidate, reference))
    assert evaluation["frechet"] == pytest.approx(frechet_distance(*statistics))
    assert (
        evaluation["n_reference"],
        evaluation["n_candidate"],
        evaluation["n_reference_tracks"],
        evaluation["n_held_out"],
    ) == (
        real.rows,
        len(candidate),
        4,
        0,
    )
    assert (evaluation["embedder"], evaluation["mel_digest"]) == ("logmel-stats", real.mel.digest)
    assert evaluation["nearest_candidate"] < 0.01 < evaluation["nearest_real"], (
        "every second slice of the dataset is, but for a sample, one of the candidate's"
    )
    assert evaluation["nearer_share"] > 0.95


def test_the_vocoder_sets_a_floor(evaluation: dict[str, Any], dataset: Path) -> None:
    assert evaluation["n_round_trip"] == 5, "two of each portion but the last two, of which one is a single slice"
    assert evaluation["frechet_round_trip"] > 0
    mel = MelDataset(str(dataset)).mel
    image = MelDataset(str(dataset)).image(0, 0)
    audio = GriffinLim(mel)(image[np.newaxis], [0])
    assert (
        evaluation["frechet_round_trip"]
        < np.square(logmel_stats(Mel(mel).images(audio)[0]) - logmel_stats(image[np.newaxis])).sum() * 20
    )


def test_the_report_names_the_closest_pairs(evaluation: dict[str, Any], dataset: Path) -> None:
    report = evaluation["report"]
    assert report["frechet"] == evaluation["frechet"]
    assert report["reference"] == str(dataset)
    assert len(report["closest"]) == 10
    assert all(pair["candidate"] == pair["reference"] and pair["distance"] < 0.01 for pair in report["closest"])
    assert [pair["distance"] for pair in report["closest"]] == sorted(pair["distance"] for pair in report["closest"])


def test_the_number_of_workers_changes_nothing(evaluation: dict[str, Any], dataset: Path, few_loops: Path) -> None:
    again = evaluate(EvaluateOptions(reference=str(dataset), candidate=str(few_loops), round_trips=6, num_workers=1))
    assert {**again, "seconds": 0} == {
        **{name: value for name, value in evaluation.items() if name != "report"},
        "seconds": 0,
    }


def test_generated_loops_and_the_models_card(
    local_ray: None, model: Path, few_loops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "model")
    before = load_model(tmp_path / "model")
    loops = tmp_path / "loops"
    generate(GenerateOptions(model=str(model), output_dir=str(loops), count=8, format="flac", steps=1, num_workers=1))
    (loops / "audio" / "0000000005.flac").write_bytes(encode_audio(np.zeros(31 * 1024, np.float32), 22_050))
    (loops / "audio" / "0000000006.flac").write_bytes(b"not audio")
    expanding_flac(loops / "audio" / "0000000007.flac")
    options = {
        "reference": str(few_loops),
        "candidate": str(loops),
        "model": str(tmp_path / "model"),
        "round_trips": 0,
        "num_workers": 1,
    }
    figures = evaluate(EvaluateOptions(**options))
    assert (figures["n_candidate"], figures["n_candidate_silent"], figures["n_candidate_unusable"]) == (5, 1, 2)
    assert "n_round_trip" not in figures
    errors = capsys.readouterr().err
    assert "warning: a side has only 5 items: distances of fewer than 128 are unreliable" in errors
    assert "warning: 1 candidate files are silent" in errors
    assert "left out: audio/0000000006.flac" in errors
    assert "left out: audio/0000000007.flac: expands to more than" in errors
    after = load_model(tmp_path / "model")
    assert after.digest == before.digest
    assert after.record is not None
    assert after.record.metrics["logmel-stats frechet"] == figures["frechet"]
    assert f"| logmel-stats frechet | {figures['frechet']:g} |" in (tmp_path / "model" / "README.md").read_text()
    (loops / "_SUCCESS").unlink()
    with pytest.raises(ValueError, match=f"candidate {loops}: generation is not finished"):
        evaluate(EvaluateOptions(**options))


def test_held_out_audio(local_ray: None, dataset: Path, few_loops: Path, loops: Path) -> None:
    options = {
        "reference": str(dataset),
        "candidate": str(few_loops),
        "held_out": str(loops / "loop_compus.flac"),
        "round_trips": 0,
        "num_workers": 1,
    }
    figures = evaluate(EvaluateOptions(**options))
    assert figures["n_held_out"] > 0
    assert figures["nearer_share"] == 1
    audio = {"reference": str(few_loops), "held_out": str(few_loops), "mel_config": str(dataset / "mel_config.json")}
    with pytest.raises(ValueError, match=f"^held_out {few_loops}: is the reference, and has no held-out tracks"):
        evaluate(EvaluateOptions(candidate=str(loops), **audio))


def test_of_a_dataset_the_held_out_tracks_are_the_measure(held_out: Path, few_loops: Path, dataset: Path) -> None:
    options = {"candidate": str(few_loops), "round_trips": 0, "num_workers": 1}
    rows = MelDataset(str(held_out), VALIDATION_SPLIT).rows
    assert evaluate(EvaluateOptions(reference=str(dataset), held_out=str(held_out), **options))["n_held_out"] == rows
    assert (
        evaluate(EvaluateOptions(reference=str(few_loops), held_out=str(dataset), **options))["n_held_out"]
        == MelDataset(str(dataset)).rows
    )
    with pytest.raises(ValueError, match=f"^held_out {dataset}: is the reference, and has no held-out tracks"):
        evaluate(EvaluateOptions(reference=str(dataset), held_out=str(dataset), **options))


def test_an_encoder_as_embedder(
    local_ray: None, dataset: Path, model: Path, few_loops: Path, loops: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = AudioEncoder()
    (tmp_path / "config.json").write_text('{"_class_name": "AudioEncoder"}')
    save_file(network.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    name = f"audio-encoder:{tmp_path}"
    shutil.copytree(model, tmp_path / "model")
    options = {
        "embedder": name,
        "model": str(tmp_path / "model"),
        "mel_config": str(dataset / "mel_config.json"),
        "round_trips": 2,
        "num_workers": 1,
    }
    figures = evaluate(EvaluateOptions(reference=str(few_loops), candidate=str(loops / "loop_tabla.flac"), **options))
    mel = Mel(MelDataset(str(dataset)).mel)
    real = [_samples(item) for items in _heard(few_loops, mel).values() for item in items]
    tabla = [_samples(item) for item in items_of(loops / "loop_tabla.flac", mel)]
    one, other = (FeatureStatistics.of(network.encode(samples, 22_050).astype(np.float64)) for samples in (tabla, real))
    assert figures["frechet"] == pytest.approx(frechet_distance(one, other), rel=1e-4)
    assert (figures["n_candidate"], figures["n_reference"]) == (len(tabla), len(real))
    assert (figures["n_features"], figures["embedder"], figures["embedder_digest"]) == (100, name, network.digest)
    assert figures["n_round_trip"] == 2
    record = load_model(tmp_path / "model").record
    assert record is not None
    assert record.metrics[f"audio-encoder:{tmp_path.name} frechet"] == figures["frechet"]
    for file in ("audiodiff.json", "README.md"):  # both files may be published
        assert str(tmp_path) not in (tmp_path / "model" / file).read_text()
    with pytest.raises(
        ValueError,
        match=f"reference {dataset}: a mel dataset holds no audio, which the embedder audio-encoder:.* needs",
    ):
        evaluate(EvaluateOptions(reference=str(dataset), candidate=str(few_loops), embedder=name, num_workers=1))


def test_mistakes_are_named(local_ray: None, dataset: Path, few_loops: Path, model: Path, tmp_path: Path) -> None:
    def refused(words: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=words):
            evaluate(
                EvaluateOptions(
                    **{"reference": str(few_loops), "candidate": str(few_loops), "num_workers": 1, **options}
                )
            )

    (tmp_path / "empty").mkdir()
    refused("neither side is a mel dataset")
    refused(f"candidate {tmp_path}/no: no such folder", candidate=str(tmp_path / "no"), reference=str(dataset))
    refused(
        f"candidate {tmp_path}/empty: holds no audio files", candidate=str(tmp_path / "empty"), reference=str(dataset)
    )
    config = tmp_path / "mel_config.json"
    config.write_text(MelConfig(x_res=32, y_res=32, hop_length=512).to_json())
    refused("different mel configurations: hop_length 1024 against 512", reference=str(dataset), mel_config=str(config))
    config.write_text(MelConfig(x_res=32, y_res=40, hop_length=1024).to_json())
    refused(
        "40 mel bands: logmel-stats needs a multiple of 16: prepare with a resolution of such a", mel_config=str(config)
    )
    shutil.copytree(dataset, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "_SUCCESS").unlink()
    refused(f"reference {tmp_path}/unfinished: not a finished mel dataset", reference=str(tmp_path / "unfinished"))
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "audiodiff.json").unlink()
    refused("has no record to write figures into", model=str(tmp_path / "model"))
    (tmp_path / "silent").mkdir()
    (tmp_path / "silent" / "a.wav").write_bytes(encode_audio(np.zeros(9_000, np.float32), 22_050))
    refused(
        "holds no usable slices .0 unusable files, 1 silent files",
        candidate=str(tmp_path / "silent"),
        reference=str(dataset),
    )


def test_portions_of_other_data_at_the_same_place_are_others(dataset: Path, few_loops: Path, tmp_path: Path) -> None:
    def write_loops(content: bytes) -> None:
        folder = Folder(str(tmp_path / "loops"))
        folder.write("manifest/000000.parquet", content)
        folder.write_json("generate.json", {})
        commits.succeed(folder, {}, {0: {"parts": {"manifest/000000.parquet": commits.sha256(content)}}})

    def digests() -> set[str]:
        options = EvaluateOptions(reference=str(tmp_path / "mel"), candidate=str(tmp_path / "loops"))
        return {digest(side.portions) for side in open_sides(options).values()}

    write_loops(b"one")
    shutil.copytree(dataset, tmp_path / "mel")
    before = digests()
    assert digests() == before
    write_loops(b"other")
    summary = json.loads((tmp_path / "mel" / "_SUCCESS").read_text())
    (tmp_path / "mel" / "_SUCCESS").write_text(json.dumps({**summary, "digest": "another"}))
    assert not digests() & before


def test_metrics_are_added_to_a_record(model: Path, tmp_path: Path) -> None:
    loaded = load_model(model)
    record = ModelRecord(recipe={"a": 1}, data_digest="d", metrics={"loss": 0.5, "x": 1})
    save_model(tmp_path / "model", loaded.unet, loaded.scheduler, loaded.mel, record)
    files = set((tmp_path / "model").rglob("*"))
    record_metrics(tmp_path / "model", {"x": 2, "y": 3, "kernel_low": float("nan")})
    assert load_model(tmp_path / "model").record == record.model_copy(update={"metrics": {"loss": 0.5, "x": 2, "y": 3}})
    assert set((tmp_path / "model").rglob("*")) == files
    for folder, words in ((tmp_path / "none", "no such folder"), (tmp_path, "not a model folder")):
        with pytest.raises(ValueError, match=words):
            record_metrics(folder, {})
