"""prepare: the contract of the dataset, reruns, and bad files."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import load_dataset
from diffusers import Mel as Oracle

from audiodiff_core.mel import MelConfig
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.mel_data.mel_dataset import MelDataset
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from tests.malformed import healthy_files, malformed_files
from tests.poison import expanding_flac

SMALL: dict[str, Any] = {"resolution": "32", "hop_length": 1024, "shard_minutes": 0.001, "num_workers": 1}


def _contents(folder: Path) -> dict[str, str]:
    """Return names and digests of the files of a dataset, except the plan.

    The plan holds the times at which the inputs were last changed.
    """
    files = (file for file in folder.rglob("*") if file.is_file() and "_plan" not in file.parts)
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((folder / "data").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_the_dataset_is_what_the_contract_says(dataset: Path, few_loops: Path) -> None:
    names = {str(file.relative_to(dataset)).split("/")[0] for file in dataset.rglob("*")}
    assert names == {
        "mel_config.json",
        "prepare.json",
        "README.md",
        "data",
        "_plan",
        "_commits",
        "_index.parquet",
        "_SUCCESS",
    }
    assert len(list((dataset / "data").glob("train-[0-9][0-9][0-9][0-9][0-9][0-9].parquet"))) == 4
    assert MelConfig.from_json((dataset / "mel_config.json").read_text()) == MelConfig(
        x_res=32, y_res=32, hop_length=1024
    )
    assert json.loads((dataset / "prepare.json").read_text())["format_version"] == 1
    rows = _rows(dataset)
    assert {row["audio_file"] for row in rows} == {
        "loop_tabla.flac",
        "loop_mika.flac",
        "bass_hit_c.flac",
        "sub/ambi_piano.flac",
    }
    tabla = [row for row in rows if row["audio_file"] == "loop_tabla.flac"]
    assert [row["slice"] for row in tabla] == list(range(len(tabla)))
    assert tabla[0]["source_sha256"] == hashlib.sha256((few_loops / "loop_tabla.flac").read_bytes()).hexdigest()
    assert tabla[2]["start_s"] == pytest.approx(MelConfig(x_res=32, hop_length=1024).slice_size / 22_050, abs=1e-4)


def test_datasets_loads_it_with_pictures(dataset: Path, tmp_path: Path) -> None:
    loaded = load_dataset(str(dataset), cache_dir=str(tmp_path))["train"]
    assert len(loaded) == len(_rows(dataset))
    picture = loaded[0]["image"]
    assert (picture.mode, picture.size) == ("L", (32, 32))


def test_datasets_loads_a_dataset_anew_when_it_has_grown(
    local_ray: None, few_loops: Path, loops: Path, tmp_path: Path
) -> None:
    source, out, cache = tmp_path / "in", tmp_path / "out", str(tmp_path / "cache")
    source.mkdir()
    for name in ("loop_mika", "loop_compus"):
        shutil.copy(loops / f"{name}.flac", source)
        prepare(PrepareOptions(input_dir=str(source), output_dir=str(out), **{**SMALL, "shard_minutes": None}))
        assert load_dataset(str(out), cache_dir=cache)["train"]["audio_file"][:] == [
            row["audio_file"] for row in _rows(out)
        ]


@pytest.mark.soak_short
def test_without_options_slices_are_the_originals(local_ray: None, few_loops: Path, tmp_path: Path) -> None:
    summary = prepare(
        PrepareOptions(
            input_dir=str(few_loops),
            output_dir=str(tmp_path / "out"),
            resolution="64,32",
            hop_length=512,
            num_workers=1,
        )
    )
    oracle = Oracle(x_res=64, y_res=32, hop_length=512)
    expected = {}
    for file in sorted(few_loops.rglob("*.flac")):
        oracle.load_audio(str(file))
        for index in range(oracle.get_number_of_slices()):
            expected[str(file.relative_to(few_loops)), index] = np.array(oracle.audio_slice_to_image(index))
    images = {(row["audio_file"], row["slice"]): row["image"]["bytes"] for row in _rows(tmp_path / "out")}
    assert images.keys() == expected.keys()
    assert summary["slices"] == len(expected)
    from PIL import Image

    for key, content in images.items():
        difference = np.abs(np.asarray(Image.open(io.BytesIO(content))).astype(int) - expected[key])
        assert difference.max() <= 1
        assert (difference == 0).mean() >= 0.999


@pytest.mark.workers
def test_workers_and_shard_order_do_not_change_the_bytes(
    local_ray: None, dataset: Path, few_loops: Path, tmp_path: Path
) -> None:
    options = PrepareOptions(input_dir=str(few_loops), output_dir=str(tmp_path / "out"), overlap=0.5, **SMALL)
    prepare(options)
    assert _contents(tmp_path / "out") == _contents(dataset)


def test_a_rerun_does_only_what_is_missing(local_ray: None, few_loops: Path, loops: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(few_loops, source)
    options = PrepareOptions(input_dir=str(source), output_dir=str(out), **SMALL)
    prepare(options)
    whole = _contents(out)

    lost = sorted((out / "data").iterdir())[1]
    lost.unlink()
    (out / "_commits" / "000001.json").unlink()
    (out / "_SUCCESS").unlink()
    (out / "data" / "train-000099.parquet").write_bytes(b"of a worker that died")
    kept = {file: file.stat().st_mtime_ns for file in (out / "data").iterdir() if file.name != "train-000099.parquet"}
    prepare(options)
    assert _contents(out) == whole
    assert {file: file.stat().st_mtime_ns for file in kept} == kept

    shutil.copy(loops / "loop_compus.flac", source)
    assert prepare(options)["files"] == 5
    after = _contents(out)
    assert {name: digest for name, digest in after.items() if name.startswith("data/") and name in whole} == {
        name: digest for name, digest in whole.items() if name.startswith("data/")
    }
    assert [row["audio_file"] for row in pq.read_table(out / "data" / "train-000004.parquet").to_pylist()] == [
        "loop_compus.flac"
    ] * 4


def test_another_configuration_or_a_changed_input_is_refused(local_ray: None, few_loops: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(few_loops, source)
    prepare(PrepareOptions(input_dir=str(source), output_dir=str(out), **SMALL))
    whole = _contents(out)
    with pytest.raises(ValueError, match=r"overlap is 0\.0 in the folder, 0\.5 in this job"):
        prepare(PrepareOptions(input_dir=str(source), output_dir=str(out), overlap=0.5, **SMALL))
    (source / "loop_mika.flac").write_bytes(b"changed")
    with pytest.raises(ValueError, match=r"loop_mika\.flac has changed"):
        prepare(PrepareOptions(input_dir=str(source), output_dir=str(out), **SMALL))
    (source / "loop_mika.flac").unlink()
    with pytest.raises(ValueError, match=r"loop_mika\.flac .*vanished"):
        prepare(PrepareOptions(input_dir=str(source), output_dir=str(out), **SMALL))
    assert _contents(out) == whole


def test_bad_files_are_quarantined_with_the_reason(local_ray: None, few_loops: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(few_loops, source)
    (source / "broken.wav").write_bytes(b"RIFF but no more")
    (source / "empty.mp3").write_bytes(b"")
    soundfile.write(source / "silent.wav", np.zeros(60_000, np.float32), 22_050)
    soundfile.write(source / "nan.wav", np.full(60_000, np.nan, np.float32), 22_050, subtype="FLOAT")
    expanding_flac(source / "poison.flac")
    flac = (source / "loop_tabla.flac").read_bytes()
    (source / "cut.flac").write_bytes(flac[: len(flac) // 2])
    summary = prepare(PrepareOptions(input_dir=str(source), output_dir=str(out), max_bad_fraction=0.6, **SMALL))
    reasons = {
        row["audio_file"]: row["reason"]
        for file in (out / "quarantine").iterdir()
        for row in pq.read_table(file).to_pylist()
    }
    used = {row["audio_file"] for row in _rows(out)}
    assert reasons.keys() | used == {str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()} - {
        "notes.txt"
    }
    assert not reasons.keys() & used
    assert reasons.keys() >= {"broken.wav", "empty.mp3", "silent.wav", "nan.wav"}
    assert "silent" in reasons["silent.wav"]
    assert "NaN" in reasons["nan.wav"]
    assert "expands to more than" in reasons["poison.flac"]
    assert summary["quarantined"] == len(reasons)


def test_too_many_bad_files_fail_the_job(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(3):
        (tmp_path / "in" / f"{index}.wav").write_bytes(b"no audio")
    with pytest.raises(JobError, match="3 of 3 files cannot be used"):
        prepare(PrepareOptions(input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_tracks_are_held_out_by_their_content(local_ray: None, few_loops: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(few_loops, source)
    shutil.copy(few_loops / "loop_mika.flac", source / "again.flac")  # a copy must not be in the other split
    files = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in source.rglob("*.flac")}
    # The fraction holds out two of the four contents.
    fraction = sorted(int(digest[:16], 16) / 2**64 for digest in set(files.values()))[1] + 1e-9
    summary = prepare(
        PrepareOptions(
            input_dir=str(source), output_dir=str(out), validation_fraction=fraction, **{**SMALL, "shard_minutes": None}
        )
    )
    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    held_out = {
        str(file.relative_to(source)) for file, digest in files.items() if int(digest[:16], 16) < fraction * 2**64
    }
    assert set(loaded["validation"]["audio_file"]) == held_out
    assert set(loaded["train"]["audio_file"]) == {str(file.relative_to(source)) for file in files} - held_out
    assert summary["validation_slices"] == len(loaded["validation"])
    assert summary["slices"] == len(loaded["validation"]) + len(loaded["train"])
    assert MelDataset(str(out)).rows == len(loaded["train"])


def test_duplicates_are_left_out_wherever_they_lie(
    local_ray: None, few_loops: Path, loops: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(few_loops, source)
    shutil.copy(few_loops / "loop_mika.flac", source / "a_mika.flac")
    with tarfile.open(source / "b.tar", "w") as archive:
        archive.add(few_loops / "loop_tabla.flac", "tabla.flac")
        archive.add(loops / "loop_compus.flac", "compus.flac")
    options = PrepareOptions(input_dir=str(source), output_dir=str(out), drop_duplicates=True, **SMALL)
    summary = prepare(options)
    first = {"a_mika.flac", "b.tar/tabla.flac", "b.tar/compus.flac", "bass_hit_c.flac", "sub/ambi_piano.flac"}
    assert {row["audio_file"] for row in _rows(out)} == first
    assert (summary["files"], summary["duplicates"], summary["quarantined"]) == (5, 2, 0)
    shutil.copy(loops / "loop_compus.flac", source / "0.flac")  # the planned copy stays, in spite of its larger name
    shutil.copy(loops / "loop_safari.flac", source / "new.flac")
    assert prepare(options)["duplicates"] == 3
    assert {row["audio_file"] for row in _rows(out)} == {*first, "new.flac"}


def test_containers_become_slices_and_quarantine_by_member(local_ray: None, few_loops: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    with tarfile.open(source / "0.tar", "w") as archive:
        archive.add(few_loops / "loop_mika.flac", "mika.flac")
        archive.addfile(tarfile.TarInfo("empty.wav"), io.BytesIO())
        archive.add(few_loops / "loop_tabla.flac", "tabla.flac")
    prepare(PrepareOptions(input_dir=str(source), output_dir=str(out), **SMALL))
    assert {row["audio_file"] for row in _rows(out)} == {"0.tar/mika.flac", "0.tar/tabla.flac"}
    assert [row["audio_file"] for row in pq.read_table(out / "quarantine").to_pylist()] == ["0.tar/empty.wav"]


def test_verify_finds_a_byte_that_changed(local_ray: None, few_loops: Path, tmp_path: Path) -> None:
    options = PrepareOptions(input_dir=str(few_loops), output_dir=str(tmp_path / "out"), verify=True, **SMALL)
    prepare(options)
    whole = _contents(tmp_path / "out")
    file = tmp_path / "out" / "data" / "train-000002.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(JobError, match=r"1 of 4 shards: remove _commits/000002\.json"):
        prepare(options)
    (tmp_path / "out" / "_commits" / "000002.json").unlink()
    prepare(options)
    assert _contents(tmp_path / "out") == whole


def test_level_options_are_kept_with_the_data(local_ray: None, few_loops: Path, tmp_path: Path) -> None:
    prepare(
        PrepareOptions(
            input_dir=str(few_loops),
            output_dir=str(tmp_path / "out"),
            reference="track",
            tail="pad",
            silence_threshold_db=-60,
            **SMALL,
        )
    )
    stated = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert (stated["reference"], stated["tail"], stated["silence_threshold_db"]) == ("track", "pad", -60)
    levels: dict[str, set[float]] = {}
    for row in _rows(tmp_path / "out"):
        levels.setdefault(row["audio_file"], set()).add(row["reference_db"])
    assert all(len(values) == 1 for values in levels.values())
    assert len(set.union(*levels.values())) == len(levels)


@pytest.mark.soak_short
@pytest.mark.workers
def test_a_thousand_malformed_files_are_each_used_or_quarantined_and_cost_no_good_one(
    local_ray: None, loops: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "good").mkdir(parents=True)
    (source / "bad").mkdir()
    healthy, malformed = healthy_files(loops), malformed_files(loops)
    for folder, files in (("good", healthy), ("bad", malformed)):
        for name, content in files.items():
            (source / folder / name).write_bytes(content)
    options = {**SMALL, "hop_length": 256, "shard_minutes": 1, "num_workers": 2}
    summary = prepare(PrepareOptions(input_dir=str(source), output_dir=str(out), max_bad_fraction=1, **options))
    assert len(malformed) >= 500
    reasons = {row["audio_file"]: row["reason"] for row in pq.read_table(out / "quarantine").to_pylist()}
    used = {row["audio_file"] for row in _rows(out)}
    assert not reasons.keys() & used
    assert (
        len(reasons) + len(used) + summary["others"]
        == summary["files"] + summary["others"]
        == len(healthy) + len(malformed)
    )
    assert {name for name in used if name.startswith("good/")} == {f"good/{name}" for name in healthy}
    assert all(reasons.values())
    assert not [reason for reason in reasons.values() if str(tmp_path) in reason or "decoder processes" in reason]
