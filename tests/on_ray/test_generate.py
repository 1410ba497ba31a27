"""generate: the same bytes whatever the workers, neighbours, counts and interruptions; the manifest says all."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import soundfile

from audiodiff_core.audio import encode_audio
from audiodiff_core.checkpoint import ModelRecord, load_model, save_model
from audiodiff_core.loops.tempo import measure_tempo
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PRESETS, build_network
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions


def _audio(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "audio").iterdir()}


def _manifest(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "manifest").to_pylist()
    return rows


@pytest.fixture(scope="module")
def eighteen(local_ray: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loops 0 to 17 by two workers: two shards."""
    out = tmp_path_factory.mktemp("eighteen") / "loops"
    generate(GenerateOptions(model=str(model), output_dir=str(out), count=18, steps=3, num_workers=2))
    return out


def test_the_manifest_describes_every_file(eighteen: Path, model: Path) -> None:
    rows = _manifest(eighteen)
    assert [row["seed"] for row in rows] == list(range(18))
    assert {row["path"] for row in rows} == {f"audio/{name}" for name in _audio(eighteen)}
    loaded = load_model(model)
    for row in rows:
        assert row["sha256"] == hashlib.sha256((eighteen / row["path"]).read_bytes()).hexdigest()
        assert (row["steps"], row["scheduler"], row["model_digest"], row["mel_digest"]) == (
            3,
            "ddim",
            loaded.digest,
            loaded.mel.digest,
        )
        assert row["duration_s"] == pytest.approx(31 * 1024 / 22_050)
        assert (row["eta"], row["guidance_scale"], row["width"], row["seamless"]) == (0.0, 1.0, 32, False)
        assert (row["threads"], row["precision"], row["device"], row["compiled"]) == (1, "fp32", "cpu", False)
        assert -60 < row["level_db"] < 0
        audio, rate = soundfile.read(eighteen / row["path"], dtype="float32")
        tempo = measure_tempo(audio, rate)
        assert (row["tempo_bpm"], row["tempo_confidence"]) == (tempo.bpm, pytest.approx(tempo.confidence, abs=0.05))
        assert row["seam_score"] >= 0
    assert (eighteen / "_SUCCESS").exists()


def test_one_worker_and_other_counts_give_the_same_bytes(eighteen: Path, model: Path, tmp_path: Path) -> None:
    generate(
        GenerateOptions(model=str(model), output_dir=str(tmp_path / "some"), count=3, seed=7, steps=3, num_workers=1)
    )
    expected = _audio(eighteen)
    some = _audio(tmp_path / "some")
    assert sorted(some) == ["0000000007.wav", "0000000008.wav", "0000000009.wav"]
    assert all(expected[name] == content for name, content in some.items())
    assert len(set(expected.values())) == 18


def test_the_pipeline_in_this_process_gives_the_same_bytes(eighteen: Path, model: Path) -> None:
    profile = ExecutionProfile.here()
    profile.prepare_process()
    (loop,) = load_model(model).pipeline(profile).generate([GenerateRequest(seed=11, steps=3)])
    assert encode_audio(loop.audio, 22_050) == _audio(eighteen)["0000000011.wav"]


def test_a_rerun_makes_only_what_is_missing(eighteen: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "loops"
    shutil.copytree(eighteen, out)
    manifest = _manifest(out)
    (out / "_commits" / "000001.json").unlink()
    (out / "_SUCCESS").unlink()
    (out / "audio" / "0000000017.wav").unlink()
    (out / "audio" / "9999999999.wav").write_bytes(b"of a worker that died")
    finished = {file: file.stat().st_mtime_ns for file in (out / "audio").iterdir() if int(file.stem) < 16}
    generate(GenerateOptions(model=str(model), output_dir=str(out), count=18, steps=3, num_workers=1))
    assert _audio(out) == _audio(eighteen)
    assert _manifest(out) == manifest
    assert {file: file.stat().st_mtime_ns for file in finished} == finished


def test_a_finished_folder_needs_no_space(
    eighteen: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "loops"
    shutil.copytree(eighteen, out)
    options = GenerateOptions(model=str(model), output_dir=str(out), count=18, steps=3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert generate(options)["loops"] == 18
    (out / "_commits" / "000001.json").unlink()
    with pytest.raises(ValueError, match="the audio needs about"):
        generate(options)


def test_other_settings_in_the_same_folder_are_refused(eighteen: Path, model: Path) -> None:
    with pytest.raises(ValueError, match="steps is 3 in the folder, 4 in this job"):
        generate(GenerateOptions(model=str(model), output_dir=str(eighteen), count=18, steps=4))


def test_the_narrowest_loops_have_all_their_figures(local_ray: None, tmp_path: Path) -> None:
    mel = MelConfig(x_res=8, y_res=32, hop_length=128)
    network = build_network("tiny", mel)
    record = ModelRecord(recipe={}, data_digest="none", metrics={})
    save_model(tmp_path / "model", network, PRESETS["tiny"].objective.scheduler("ddim"), mel, record)
    out = tmp_path / "loops"
    generate(GenerateOptions(model=str(tmp_path / "model"), output_dir=str(out), count=2, steps=2, num_workers=1))
    assert len(_audio(out)) == 2
    for row in _manifest(out):
        assert row["duration_s"] == pytest.approx(7 * 128 / 22_050)
        assert 0 < row["seam_score"] < 100
        assert -60 < row["level_db"] < 0
    with pytest.raises(ValueError, match="width 1: audio needs at least 2 columns"):
        generate(GenerateOptions(model=str(tmp_path / "model"), output_dir=str(tmp_path / "none"), count=1, width=1))
    assert not (tmp_path / "none").exists()


def test_a_format_that_cannot_hold_the_rate_is_refused(tmp_path: Path) -> None:
    mel = MelConfig(x_res=32, y_res=32, sample_rate=96_000)
    record = ModelRecord(recipe={}, data_digest="none", metrics={})
    save_model(tmp_path / "model", build_network("tiny", mel), PRESETS["tiny"].objective.scheduler("ddim"), mel, record)
    with pytest.raises(ValueError, match="format mp3 at 96000 Hz"):
        generate(
            GenerateOptions(model=str(tmp_path / "model"), output_dir=str(tmp_path / "none"), count=1, format="mp3")
        )
    assert not (tmp_path / "none").exists()


def test_seeds_end_where_torch_ends() -> None:
    with pytest.raises(ValueError, match="the last seed must be at most 4294967295"):
        GenerateOptions(model="m", output_dir="o", seed=2**32 - 2, count=3)
    with pytest.raises(ValueError, match="less than or equal to 10000000"):
        GenerateOptions(model="m", output_dir="o", count=2**32)
