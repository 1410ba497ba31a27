"""Kinds of single input files that are read or refused, and counts of skipped files.

The counts are followed up to the summary of prepare.
"""

import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from audiodiff_core.audio import AUDIO_EXTENSIONS, Samples
from audiodiff_core.embeddings.inputs import LONGEST_EMBEDDED_S
from audiodiff_core.evaluation.embedders import load_embedder
from audiodiff_core.mel import MelConfig
from audiodiff_platform.audio_files import Inputs, Source, described, shortened, skipped_in
from audiodiff_platform.encode import embeddings as embeddings_worker
from audiodiff_platform.evaluate.options import REFERENCE
from audiodiff_platform.evaluate.portions import Portion, Portions
from audiodiff_platform.evaluate.result import Result
from audiodiff_platform.evaluate.worker import EvaluateWorker, Method
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.storage import Folder
from audiodiff_platform.work.attempts import Attempts


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("song.xyz", r"exists, but the extension \.xyz is not supported: supported are \.3g2 .* \.wav "),
        ("SONG.XYZ", r"exists, but the extension \.xyz is not supported"),
        ("song", "exists, but it has no extension"),
        ("No. 1 in C", "exists, but it has no extension"),
        ("music.tar.gz", r"the extension \.tar\.gz is not supported: unpack it"),
        ("music.tgz", "unpack it"),
        ("music.zip", "unpack it"),
        ("mix.m3u8", r"the extension \.m3u8 is not supported: write its file names to a \.txt list"),
    ],
)
def test_a_file_that_is_not_read_is_said_to_exist(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message) as caught:
        list(Inputs(str(tmp_path / name)).sources())
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["pipe.wav", "pipe.txt", "pipe.tar", "pipe.parquet"])
def test_a_pipe_is_not_opened(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="is a device, pipe or socket, not a file"):
        list(Inputs(str(tmp_path / name)).sources())


@pytest.mark.parametrize("extension", sorted(AUDIO_EXTENSIONS))
def test_each_audio_extension_is_read_alone_in_a_folder_and_on_a_list(tmp_path: Path, extension: str) -> None:
    for name in (f"a{extension}", f"B{extension.upper()}"):
        (tmp_path / name).write_bytes(b"")
        assert [source.uri for source in Inputs(str(tmp_path / name)).sources()] == [name]
    assert {source.uri for source in Inputs(str(tmp_path)).sources()} == {f"a{extension}", f"B{extension.upper()}"}
    (tmp_path / "list.txt").write_text(f"a{extension}\nB{extension.upper()}")
    assert len(list(Inputs(str(tmp_path / "list.txt")).sources())) == 2


def test_counts_of_what_is_passed_over_name_the_most_frequent() -> None:
    counts = Counter({f".{number:03d}": number for number in range(1, 101)})
    kinds = shortened(counts)
    assert len(kinds) == 21
    assert (kinds[".100"], kinds["other kinds"]) == (100, sum(range(1, 81)))
    assert described(Counter({".md": 1_200, "none": 1, ".tar.gz": 2})) == (
        "1,203 others: 1,200 .md, 2 .tar.gz, 1 without extension; "
        ".tar.gz: unpack it, or pack the files into a .tar without compression"
    )
    assert described(Counter()) == "0 others"


def test_prepare_counts_what_it_passes_over_in_folders_and_archives(
    local_ray: None, few_loops: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("cover.jpg", "notes.TXT", "LICENSE", "._a.wav"):
        (source / name).write_bytes(b"")
    with tarfile.open(source / "a.tar", "w") as archive:
        archive.add(few_loops / "loop_mika.flac", "./mika.flac")
        archive.add(few_loops / "notes.txt", "mika.txt")
        archive.add(few_loops / "notes.txt", "__MACOSX/._mika.flac")
        link = tarfile.TarInfo("lost.flac")
        link.type, link.linkname = tarfile.LNKTYPE, "absent.flac"
        archive.addfile(link)
    options = PrepareOptions(
        input_dir=str(source), output_dir=str(tmp_path / "out"), resolution="32", hop_length=1_024, num_workers=1
    )
    expected = {".jpg": 1, ".txt": 2, "none": 1, "hidden files": 2}
    for _ in range(2):
        summary = prepare(options)
        assert (summary["files"], summary["quarantined"], summary["others"], summary["skipped"]) == (2, 1, 6, expected)
    (row,) = pq.read_table(tmp_path / "out" / "quarantine").to_pylist()
    assert (row["audio_file"], row["reason"]) == (
        "a.tar/lost.flac",
        "hard link to absent.flac, which is not in the archive",
    )
    (again,) = [options.model_copy(update={"output_dir": str(tmp_path / "unique"), "drop_duplicates": True})]
    assert prepare(again)["files"] == 2


def archive(few_loops: Path, folder: Path) -> Source:
    """Write a tar of two loops and of three files that are not read; return its source."""
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name in ("mika.flac", "tabla.flac"):
            tar.add(few_loops / f"loop_{name}", name)
        for name in ("mika.txt", "tabla.txt", "._mika.flac"):
            tar.add(few_loops / "notes.txt", name)
    (source,) = Inputs(str(folder)).sources()
    return source


class MeanEncoder:
    name, digest, dim, sample_rate = "mean", "0", 1, 22_050

    def encode(self, audios: list[Samples], _rate: int) -> Samples:
        return np.stack([audio[:1] for audio in audios])


def test_embeddings_count_what_they_pass_over_in_archives_and_refuse_long_files(
    few_loops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    source = archive(few_loops, tmp_path / "in")
    monkeypatch.setattr(embeddings_worker, "load_encoder", lambda *_: MeanEncoder())
    monkeypatch.setattr(embeddings_worker, "read_shard", lambda *_: [(source, 0)])
    worker = embeddings_worker.EmbeddingsWorker(str(tmp_path / "in"), str(tmp_path / "out"), "mean", "0")
    record = worker.shard(0, Attempts(Folder(str(tmp_path / "out")), 0, "test"))
    assert (record["rows"], record["failures"], record["skipped"]) == (2, [], {".txt": 2, "hidden files": 1})
    assert skipped_in([record, record, {}]) == {".txt": 4, "hidden files": 2}
    assert LONGEST_EMBEDDED_S == 3_600
    monkeypatch.setattr(embeddings_worker, "LONGEST_EMBEDDED_S", 1.0)
    reasons = {
        failure["reason"] for failure in worker.shard(0, Attempts(Folder(str(tmp_path / "out")), 0, "test"))["failures"]
    }
    assert all("at most 1 s are decoded at once: use a shorter file" in reason for reason in reasons)
    assert reasons


def test_evaluations_count_what_they_pass_over_in_archives(few_loops: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    portion = Portion(REFERENCE, str(tmp_path / "in"), (archive(few_loops, tmp_path / "in"),))
    mel = MelConfig(x_res=32, y_res=32, hop_length=1_024)
    digest = load_embedder("logmel-stats", mel.sample_rate).digest
    worker = EvaluateWorker(Portions([portion]), None, Method("logmel-stats", digest, mel, 1_000))
    record = worker.shard(0, Attempts(Folder(str(tmp_path / "out")), 0, "test"))
    result = Result.of(record["result"])
    assert (set(result.part.items.tracks), result.skipped) == (
        {"a.tar/mika.flac", "a.tar/tabla.flac"},
        {".txt": 2, "hidden files": 1},
    )
