"""evaluate and encode of generated loops, through their manifest, on disks and on object stores."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audiodiff_core.audio import decode_audio
from audiodiff_core.embeddings import load_encoder
from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.evaluate import sides
from audiodiff_platform.evaluate.job import evaluate
from audiodiff_platform.evaluate.options import EvaluateOptions
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.mel_data.encodings import read_encodings
from audiodiff_platform.mel_data.loops_folder import committed_files
from audiodiff_platform.storage import Folder, commits
from tests import tiny_clap
from tests.in_process import in_process
from tests.servers.stores import Store

LOOPS = 18  # in two shards


@pytest.fixture(scope="module")
def generated(local_ray: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of loops, one of them without a file, beside files that no commit names."""
    folder = tmp_path_factory.mktemp("generated") / "loops"
    with in_process():
        generate(GenerateOptions(model=str(model), output_dir=str(folder), count=LOOPS, steps=1, num_workers=1))
    manifest = folder / "manifest" / "000000.parquet"
    rows = pq.read_table(manifest).to_pylist()
    (folder / rows[0]["path"]).rename(folder / "audio" / "uncommitted.wav")
    rows[0] |= {"path": None, "sha256": None, "reason": "rejected"}
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(manifest)), manifest)
    records = commits.committed(Folder(str(folder)))
    del records[0]["parts"][f"audio/{0:010d}.wav"]
    commits.succeed(Folder(str(folder)), Folder(str(folder)).read_json(commits.SUCCESS), records)
    return folder


def _upload(local: Path, uri: str) -> None:
    for file in local.rglob("*"):
        if file.is_file():
            Folder(uri).write(str(file.relative_to(local)), file.read_bytes())


def _figures(**options: Any) -> dict[str, Any]:
    figures = evaluate(EvaluateOptions(**{"round_trips": 0, "num_workers": 1, **options}))
    return {name: value for name, value in figures.items() if name != "seconds"}


def test_only_the_loops_of_the_manifest_are_compared(
    generated: Path, dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = _figures(reference=str(dataset), candidate=str(generated))
    assert (figures["n_candidate"], figures["n_candidate_unusable"]) == (LOOPS - 1, 0)
    assert figures["skipped"]["candidate"] == {"loops without a file": 1}
    everything = _figures(reference=str(dataset), candidate=str(generated / "audio"))
    assert everything["n_candidate"] == LOOPS
    line = next(line for line in capsys.readouterr().err.splitlines() if "Fréchet distance" in line)
    assert f"Fréchet distance {figures['frechet']:.4g} (95 %: {figures['frechet_low']:.4g} to" in line
    assert f"of {LOOPS - 1} candidate and {figures['n_reference']} reference slices" in line
    assert f"kernel distance {figures['kernel']:.4g} (95 %: {figures['kernel_low']:.4g} to" in line
    assert (
        len(sides.open_sides(EvaluateOptions(reference=str(dataset), candidate=str(generated)))["candidate"].portions)
        == 2
    )
    monkeypatch.setattr(sides, "MAX_LOOP_PORTIONS", 1)
    in_one = _figures(reference=str(dataset), candidate=str(generated))
    assert (in_one["kernel"], in_one["frechet"]) == (figures["kernel"], pytest.approx(figures["frechet"]))


def test_a_loop_that_is_missing_is_left_out(
    generated: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Folder(str(tmp_path / "loops"))
    _upload(generated, folder.uri)
    name = f"audio/{LOOPS - 1:010d}.wav"
    folder.remove(name)
    figures = _figures(reference=str(dataset), candidate=folder.uri)
    assert (figures["n_candidate"], figures["n_candidate_unusable"]) == (LOOPS - 2, 1)
    assert f"left out: {name}: no such file" in capsys.readouterr().err
    folder.write("_index.parquet", folder.read("_index.parquet") + b"0")
    with pytest.raises(ValueError, match=r"_index\.parquet does not match the digest in _SUCCESS"):
        list(committed_files(folder, "audio"))


@pytest.mark.package("transformers")
def test_embeddings_of_loops_are_named_as_in_the_manifest(generated: Path, tmp_path: Path) -> None:
    tiny_clap.write(tmp_path / "clap", fused=False)
    options = {"input_dir": str(generated), "encoder": str(tmp_path / "clap"), "num_workers": 1}
    encode(EncodeOptions(**options, output_dir=str(tmp_path / "out")))
    encodings, clap = read_encodings(str(tmp_path / "out")), load_encoder(tmp_path / "clap")
    paths = [row["path"] for row in pq.read_table(generated / "manifest").to_pylist()]
    assert sorted(encodings.audio_files) == sorted(path for path in paths if path is not None)
    audio = decode_audio(generated / paths[-1], clap.sample_rate)
    expected = clap.encode([audio], clap.sample_rate)
    np.testing.assert_array_equal(encodings.vectors_for([paths[-1]]), expected)


@pytest.mark.soak_short
@pytest.mark.package("transformers")
def test_sides_encodings_and_reports_on_object_stores(
    store: Store, model: Path, generated: Path, dataset: Path, held_out: Path, few_loops: Path, tmp_path: Path
) -> None:
    bucket = store.make_bucket()
    for local, name in ((dataset, "mel"), (held_out, "held-out"), (few_loops, "music"), (generated, "loops")):
        _upload(local, f"{bucket}/{name}")
    report = f"{bucket}/report"
    figures = _figures(
        reference=f"{bucket}/mel", candidate=f"{bucket}/loops", held_out=f"{bucket}/held-out", output_dir=report
    )
    assert figures == _figures(reference=str(dataset), candidate=str(generated), held_out=str(held_out))
    assert Folder(report).read_json("report.json")["kernel"] == figures["kernel"]
    assert [entry.name for entry in Folder(report).walk()] == ["report.json"]
    stated = {"mel_config": f"{bucket}/mel/mel_config.json"}
    figures = _figures(reference=f"{bucket}/music", candidate=f"{bucket}/loops/audio", **stated)
    assert figures == _figures(reference=str(few_loops), candidate=str(generated / "audio"), **stated)

    tiny_clap.write(tmp_path / "clap", fused=False)
    options: dict[str, Any] = {"encoder": str(tmp_path / "clap"), "num_workers": 1}
    encode(EncodeOptions(input_dir=f"{bucket}/loops", output_dir=f"{bucket}/of-loops", **options))
    encode(EncodeOptions(input_dir=str(generated), output_dir=str(tmp_path / "of-loops"), **options))
    ours, theirs = read_encodings(f"{bucket}/of-loops"), read_encodings(str(tmp_path / "of-loops"))
    assert ours.content_digest == theirs.content_digest
    both = {"dataset_name": f"{bucket}/mel", "input_dir": f"{bucket}/music"}
    encode(EncodeOptions(**both, output_dir=f"{bucket}/of-mel", **options))
    assert len(read_encodings(f"{bucket}/of-mel")) == 4

    generate(GenerateOptions(model=str(model), output_dir=f"{bucket}/new", count=2, steps=1, num_workers=1))
    assert _figures(reference=f"{bucket}/mel", candidate=f"{bucket}/new")["n_candidate"] == 2
