"""Folders of any name, on disk and on object stores, in listings, removals and every verb.

No character of a name is treated as a pattern.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures
from safetensors.torch import save_file

from audiodiff_core.checkpoint import ModelRecord, load_model, record_metrics
from audiodiff_core.checkpoint.convert import convert
from audiodiff_core.checkpoint.save import upload_model
from audiodiff_core.embeddings.audio_encoder import AudioEncoder
from audiodiff_platform.audio_files import Inputs
from audiodiff_platform.cluster import usable_path
from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.evaluate.job import evaluate
from audiodiff_platform.evaluate.options import EvaluateOptions
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.mel_data.mel_configs import read_mel_config
from audiodiff_platform.mel_data.original_datasets import open_dataset
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.options import TrainOptions
from tests.rare import rare
from tests.servers.stores import Stores

NAMES = [
    "Artist - Album [FLAC]",
    "a*",
    "what?",
    "[!x]",
    "**",
    "{a,b}",
    "one::two",
    "file::zip",
    "#1 of 100%25",
    "~root",
    "Ænima é 音",
    "b$(x)&'\"c",
    "[",
    "a\\[b]",
]
NEIGHBOURS = ["Artist - Album F", "ab", "whats", "y", "x", "a", "b", "one", "file"]
CHARACTERS = "Artist - Album [FLAC]*?"


@pytest.fixture(params=["path", "file", "s3", "gs"])
def parent(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URI of an empty place for folders."""
    if request.param in ("path", "file"):
        return str(tmp_path) if request.param == "path" else f"file://{tmp_path}"
    stores: Stores = request.getfixturevalue("stores")
    return f"{getattr(stores, request.param).make_bucket()}/place"


def contents(folder: Folder) -> set[str]:
    return {entry.name for entry in folder.walk()}


def test_a_folder_of_any_name_is_itself(parent: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    scratch = tmp_path_factory.mktemp("scratch")
    for name in NEIGHBOURS:
        Folder(f"{parent}/{name}").write("data/neighbour", b"n")
    for name in NAMES:
        folder = Folder(usable_path("output_dir", f"{parent}/{name}"))
        assert folder.names("data/*") == []
        folder.write("data/one", b"1")
        folder.create_json("data/two", {})
        folder.write("other/x", b"x")
        assert folder.exists("data/one")
        assert folder.is_folder()
        assert folder.names("data/*") == ["data/one", "data/two"]
        assert folder.names("*/*") == folder.names("**/*") == ["data/one", "data/two", "other/x"]
        assert folder.read_all("data/o*") == {"data/one": b"1"}
        assert contents(folder) == {"data/one", "data/two", "other/x"}
        assert folder.entry("data/one").size == 1
        assert folder.fetch("data/one", scratch).read_bytes() == b"1"
        folder.download("data", scratch / str(len(name)))
        assert (scratch / str(len(name)) / "one").read_bytes() == b"1"
        folder.remove("data/two")
        assert contents(folder) == {"data/one", "other/x"}
    for name in NAMES:
        Folder(f"{parent}/{name}").remove("data")
        assert contents(Folder(f"{parent}/{name}")) == {"other/x"}
    assert {name for name in contents(Folder(parent)) if "neighbour" in name} == {
        f"{name}/data/neighbour" for name in NEIGHBOURS
    }


def test_removal_takes_names_and_not_patterns(parent: str) -> None:
    folder = Folder(parent)
    safe = ["ab/x", "a/x", "abc", "[a]/x", "b/x", "a*b/x", "a*", "deep/ab/x"]
    for name in safe:
        folder.write(name, b"x")
    for name in ("a?", "*", "**", "[ab]", "deep/*", "a*/", "?", "[!c]"):
        folder.write(f"{name.rstrip('/')} /x", b"x")
        folder.remove(name.rstrip("/") + " ")
        if name != "a*/":
            folder.remove(name)
        assert contents(folder) == set(safe), name
    folder.remove("a*")
    assert contents(folder) == set(safe) - {"a*"}
    for name in ("dir*/x", "dir*/y/z", "dirs/x"):
        folder.write(name, b"x")
    folder.remove("dir*")
    assert contents(folder) == {*safe, "dirs/x"} - {"a*"}


def test_files_of_any_name_are_read(parent: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    scratch = tmp_path_factory.mktemp("scratch")
    uri = f"{parent}/{CHARACTERS}"
    written = {f"{name}/{name}.wav": name.encode() for name in NAMES}
    for name, content in written.items():
        Folder(uri).write(name, content)
    inputs = Inputs(uri)
    assert {source.uri: inputs.fetch(source, scratch).read_bytes() for source in inputs.sources()} == written
    assert [source.uri for source in Inputs(f"{uri}/a*/a*.wav").sources()] == ["a*.wav"]
    Folder(uri).write("list.txt", f"{uri}/a*/a*.wav\nwhat?/what?.wav\n".encode())
    listed = Inputs(f"{uri}/list.txt")
    assert [listed.fetch(source, scratch).read_bytes() for source in listed.sources()] == [b"a*", b"what?"]


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/a?versionId=1", "gs://bucket/a?X-Goog-Signature=1/b", "https://host/a?b", "s3://key:secret@bucket/a"],
)
def test_queries_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="holds a query or a password"):
        usable_path("input_dir", uri)


def test_models_of_any_name_are_loaded_and_written(parent: str, model: Path) -> None:
    digest = load_model(model).digest
    uri = f"{parent}/{CHARACTERS}::#1 100%25/model"
    if "://" in parent:
        upload_model(model, uri)
    else:
        shutil.copytree(model, uri)
    assert load_model(uri).digest == digest
    record_metrics(uri, {"figure": 1.0})
    record = load_model(uri).record
    assert isinstance(record, ModelRecord)
    assert record.metrics == {"figure": 1.0}
    assert read_mel_config(f"{uri}/mel/mel_config.json") == load_model(model).mel
    convert(uri, f"{uri} converted")
    assert load_model(f"{uri} converted").digest == digest


@pytest.mark.parametrize("name", [CHARACTERS, "one::two", "plain"])
def test_the_originals_datasets_are_opened_by_any_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = Features({"image": Image(), "audio_file": Value("string"), "slice": Value("int32")})
    rows: dict[str, list[Any]] = {
        "image": [Pictures.new("L", (32, 32), 7 * number) for number in range(3)],
        "audio_file": ["a"] * 3,
        "slice": [0, 1, 2],
    }
    original = Dataset.from_dict(rows, features=features)
    original.save_to_disk(tmp_path / "saved")
    original.to_parquet(tmp_path / "train[0].parquet")
    shutil.copytree(tmp_path / "saved", tmp_path / name / "saved")
    (tmp_path / name / "parquet").mkdir()
    (tmp_path / "train[0].parquet").rename(tmp_path / name / "parquet" / "train[0].parquet")
    for kind in ("saved", "parquet"):
        opened = open_dataset(str(tmp_path / name / kind))
        assert [int(opened.image(0, row)[0, 0]) for row in range(opened.rows)] == [0, 7, 14]


@pytest.mark.soak_short
def test_every_verb_takes_folders_of_any_name(local_ray: None, few_loops: Path, model: Path, tmp_path: Path) -> None:
    place = tmp_path / CHARACTERS
    shutil.copytree(few_loops, place / "in [1]")
    shutil.copytree(model, place / "model *")
    (place / "encoder ?").mkdir()
    (place / "encoder ?" / "config.json").write_text('{"_class_name": "AudioEncoder"}')
    save_file(AudioEncoder().state_dict(), place / "encoder ?" / "diffusion_pytorch_model.safetensors")
    mel = prepare(
        PrepareOptions(
            input_dir=str(place / "in [1]"),
            output_dir=str(place / "mel ?"),
            resolution="32",
            hop_length=1024,
            num_workers=1,
            drop_duplicates=True,
            verify=True,
        )
    )
    assert (mel["files"], mel["quarantined"]) == (4, 0)
    made = generate(
        GenerateOptions(
            model=str(place / "model *"), output_dir=str(place / "loops [x]"), count=2, steps=2, num_workers=1
        )
    )
    assert made["loops"] == 2
    assert len(list((place / "loops [x]" / "audio").iterdir())) == 2
    encoded = encode(
        EncodeOptions(
            input_dir=str(place / "in [1]"),
            encoder=str(place / "encoder ?"),
            output_dir=str(place / "encodings"),
            num_workers=1,
        )
    )
    assert (encoded["embeddings"], encoded["skipped"]) == (4, {".txt": 1})
    figures = evaluate(
        EvaluateOptions(
            reference=str(place / "mel ?"),
            candidate=str(place / "loops [x]"),
            model=str(place / "model *"),
            output_dir=str(place / "report"),
            round_trips=0,
            num_workers=1,
        )
    )
    assert figures["n_candidate"] > 0
    assert json.loads((place / "report" / "report.json").read_text())["candidate"] == str(place / "loops [x]")
    steps: dict[str, Any] = {"max_train_steps": 1, "train_batch_size": 2, "num_workers": 1, "preview_count": 0}
    trained = train(TrainOptions(dataset_name=str(place / "mel ?"), output_dir=str(place / "run [1]"), **steps))
    assert trained["steps"] == 1
    assert load_model(place / "run [1]" / "model").record is not None
    assert (
        train(TrainOptions(dataset_name=str(place / "mel ?"), output_dir=str(place / "run [1]"), **steps))["steps"] == 1
    )


@pytest.mark.parametrize("scheme", ["s3", rare("gs")])
def test_prepare_and_generate_take_stores_folders_of_any_name(
    local_ray: None, stores: Stores, few_loops: Path, model: Path, scheme: str
) -> None:
    place = f"{getattr(stores, scheme).make_bucket()}/{CHARACTERS}"
    for file in ("loop_tabla.flac", "bass_hit_c.flac"):
        Folder(f"{place}/in").write(file, (few_loops / file).read_bytes())
    summary = prepare(
        PrepareOptions(
            input_dir=f"{place}/in", output_dir=f"{place}/mel", resolution="32", hop_length=1024, num_workers=1
        )
    )
    assert (summary["files"], summary["quarantined"]) == (2, 0)
    upload_model(model, f"{place}/model")
    made = generate(
        GenerateOptions(model=f"{place}/model", output_dir=f"{place}/loops", count=2, steps=2, num_workers=1)
    )
    assert made["loops"] == 2
    assert len(Folder(f"{place}/loops").names("audio/*")) == 2
