"""The index of a finished folder: read instead of the commits, packed, and fixed for each run."""

import json
from collections.abc import Callable, Iterator
from functools import partialmethod
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.mel_data.mel_dataset import (
    DATASET_FORMAT_VERSION,
    DATASET_VERSION,
    MEL_CONFIG,
    VALIDATION_SPLIT,
    MelDataset,
    data_file,
)
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.storage import Folder, commits, index
from audiodiff_platform.storage.index import INDEX, from_parquet
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.options import TrainOptions
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.verify import VerifyWorker
from tests.servers.stores import Stores

MEL = {"x_res": 32, "y_res": 32, "sample_rate": 22050, "n_fft": 2048, "hop_length": 1024, "top_db": 80, "n_iter": 32}


def _record(shard: int) -> dict[str, Any]:
    parts = {data_file(shard): f"{shard:064x}", f"quarantine/{shard:06d}.parquet": f"{shard:064x}"}
    splits = {"rows": 300, "row_groups": [256, 44], VALIDATION_SPLIT: {"rows": 0, "row_groups": []}}
    return {**splits, "parts": parts, "sizes": dict.fromkeys(parts, 1_000)}


def _simulated(folder: Folder, shards: int) -> None:
    """Finish a folder of `shards` shards, without parts and commits."""
    folder.write(MEL_CONFIG, json.dumps(MEL).encode())
    commits.succeed(
        folder,
        {"format_version": DATASET_FORMAT_VERSION, "digest": "simulated"},
        {shard: _record(shard) for shard in range(shards)},
    )


def test_a_dataset_of_40000_shards_opens_with_few_requests(stores: Stores) -> None:
    folder = Folder(f"{stores.s3.make_bucket()}/mel")
    _simulated(folder, 40_000)
    counted = stores.s3.proxy.inject("unavailable", "*", "", times=10**9, every=10**9)
    try:
        dataset = MelDataset(folder.uri)
    finally:
        stores.s3.proxy.clear()
    assert (dataset.rows, len(dataset.shards), len(dataset.groups)) == (12_000_000, 40_000, 80_000)
    assert 1 <= counted.seen <= 5


@pytest.mark.soak_short
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_many_records_are_packed_and_found(place: str, stores: Stores, tmp_path: Path) -> None:
    folder = Folder(f"{stores.s3.make_bucket()}/mel" if place == "s3" else str(tmp_path / "mel"))
    records = {shard: _record(shard) for shard in range(1_001)}
    for shard, record in records.items():
        commits.commit(folder, shard, record)
    commits.pack(folder, {shard: records[shard] for shard in range(1_000)} | {1_000: records[1_000]})
    assert folder.names("_commits/*") == ["_commits/0000.parquet", "_commits/0001.parquet"]
    assert commits.committed(folder) == records
    commits.commit(folder, 1_001, _record(1_001))
    commits.pack(folder, commits.committed(folder))
    assert commits.record_places(folder, [7, 1_000, 1_001]) == [
        "_commits/0000.parquet",
        "_commits/0001.parquet",
        "_commits/001001.json",
    ]
    assert set(commits.committed(folder)) == set(range(1_002))


def test_records_that_are_packed_and_not_yet_removed_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after packing and before the removal leaves this state."""
    monkeypatch.setattr(commits, "MAX_LOOSE_RECORDS", 3)
    folder = Folder(str(tmp_path))
    records = {shard: _record(shard) for shard in range(5)}
    for _ in range(2):
        for shard, record in records.items():
            commits.commit(folder, shard, record)
        assert commits.committed(folder) == records
        commits.pack(folder, records)
        assert folder.names("_commits/*") == ["_commits/0000.parquet"]
        assert commits.committed(folder) == records


def test_a_killed_withdrawal_loses_no_other_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "MAX_LOOSE_RECORDS", 0)
    monkeypatch.setattr(commits, "RECORDS_PER_PACK", 2)
    records = {shard: _record(shard) for shard in range(8)}
    withdrawn = {1, 2, 3, 7}
    others = {shard: record for shard, record in records.items() if shard not in withdrawn}
    kills, finished = 0, False
    while not finished:
        folder = Folder(str(tmp_path / str(kills)))
        for shard in range(6):
            commits.commit(folder, shard, records[shard])
        commits.pack(folder, {shard: records[shard] for shard in range(6)})
        for shard in (1, 6, 7):  # a kill while records were packed leaves that of shard 1 in two files
            commits.commit(folder, shard, records[shard])
        with monkeypatch.context() as patch:
            calls = count()
            for name in ("write", "remove", "remove_files"):
                patch.setattr(Folder, name, partialmethod(_killed_at, getattr(Folder, name), calls, kills))
            try:
                commits.withdraw(folder, withdrawn)
                finished = True
            except KeyboardInterrupt:
                kills += 1
        left = commits.committed(folder)
        assert {shard: left[shard] for shard in others} == others
        assert {shard: records[shard] for shard in left} == left
        commits.withdraw(folder, withdrawn)
        assert commits.committed(folder) == others
    assert kills == 3, "two packs change, and two records are removed in one call"
    assert folder.names("_commits/*") == ["_commits/0000.parquet", "_commits/000006.json", "_commits/0002.parquet"]


def _killed_at(folder: Folder, change: Callable[..., None], calls: Iterator[int], last: int, *arguments: Any) -> None:
    if next(calls) == last:
        raise KeyboardInterrupt
    change(folder, *arguments)


def test_a_verifying_worker_reads_the_rows_of_its_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "ROW_GROUP_ROWS", 7)
    folder = Folder(str(tmp_path))
    _simulated(folder, 100)
    monkeypatch.delattr(commits, "finished")
    groups: list[list[int]] = []
    read = pq.ParquetFile.read_row_groups

    def noted(file: pq.ParquetFile, wanted: list[int], **options: Any) -> Any:
        groups.append(wanted)
        return read(file, wanted, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", noted)
    worker = VerifyWorker(folder.uri)
    for shard in (0, 3, 99):
        assert sorted(worker.shard(shard, Attempts(folder, shard, "this"))["wrong"]) == sorted(_record(shard)["parts"])
    assert groups == [[0], [0, 1], [28]]


def test_an_index_of_another_state_is_refused(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    _simulated(folder, 3)
    earlier = folder.read(INDEX)
    _simulated(folder, 4)
    folder.write(INDEX, earlier)
    with pytest.raises(ValueError, match=r"_index\.parquet does not match the digest in _SUCCESS"):
        MelDataset(folder.uri)


def test_a_folder_without_an_index_is_read_by_its_commits(dataset: Path, tmp_path: Path) -> None:
    folder, whole = Folder(str(tmp_path / "old")), MelDataset(str(dataset))
    Folder(str(dataset)).download("", tmp_path / "old")
    folder.remove(INDEX)
    summary = folder.read_json(commits.SUCCESS)
    folder.write_json(commits.SUCCESS, {name: value for name, value in summary.items() if name != "index_sha256"})
    run = Folder(str(tmp_path / "run"))
    run.write(DATASET_VERSION, MelDataset(folder.uri).version)
    for opened in (MelDataset(folder.uri), MelDataset(folder.uri, run=run)):
        assert (opened.groups, opened.digest, opened.added) == (whole.groups, whole.digest, 0)


def _prepare(folder: Path, out: Path, **options: Any) -> None:
    flags: dict[str, Any] = {
        "resolution": "32",
        "hop_length": 1024,
        "overlap": 0.5,
        "shard_minutes": 0.001,
        "num_workers": 1,
    }
    prepare(PrepareOptions(input_dir=str(folder), output_dir=str(out), **{**flags, **options}))


def test_the_index_names_what_is_there(dataset: Path) -> None:
    parts = from_parquet((dataset / INDEX).read_bytes())
    assert {part.path for part in parts} == {
        str(file.relative_to(dataset)) for kind in ("data", "quarantine") for file in (dataset / kind).glob("*")
    }
    assert all((dataset / part.path).stat().st_size == part.bytes for part in parts)
    assert json.loads((dataset / commits.SUCCESS).read_text())["index_sha256"] == commits.file_sha256(dataset / INDEX)


@pytest.mark.soak_short
def test_files_added_while_a_training_runs_do_not_end_it(
    local_ray: None, few_loops: Path, loops: Path, encoder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run keeps the rows and encodings that it began with, during and after an addition."""
    music, out, vectors, run = (tmp_path / name for name in ("in", "mel", "vectors", "run"))
    music.mkdir()
    for loop in few_loops.glob("*.flac"):
        (music / loop.name).symlink_to(loop.resolve())
    embedding = EncodeOptions(input_dir=str(music), output_dir=str(vectors), encoder=str(encoder), num_workers=1)
    options: dict[str, Any] = {
        "dataset_name": str(out),
        "encodings": str(vectors),
        "output_dir": str(run),
        "preset": "tiny-conditional",
        "num_workers": 1,
    }
    options |= {"train_batch_size": 2, "preview_count": 0}
    _prepare(music, out)
    encode(embedding)
    train(TrainOptions(max_train_steps=2, **options))
    began = MelDataset(str(out))
    (music / "later.flac").symlink_to((loops / "loop_safari.flac").resolve())
    _prepare(music, out)
    encode(embedding)
    grown = MelDataset(str(out))
    assert grown.rows > began.rows
    for folder in (out, vectors):  # the state during a further addition
        (folder / commits.SUCCESS).unlink()
    capfd.readouterr()
    train(TrainOptions(max_train_steps=4, **options))
    assert (
        f"{grown.rows - began.rows:,} rows were added after this run began and are not used" in capfd.readouterr().err
    )
    assert MelDataset(str(out), run=Folder(str(run))).groups == began.groups
    recorded = json.loads((run / "model" / "audiodiff.json").read_text())
    assert recorded["data_digest"] == began.digest != grown.digest


def test_a_run_refuses_a_dataset_that_lacks_its_version(few_loops: Path, dataset: Path, tmp_path: Path) -> None:
    run, other = Folder(str(tmp_path / "run")), tmp_path / "other"
    run.write(DATASET_VERSION, MelDataset(str(dataset)).version)
    _prepare(few_loops, other, overlap=0.25)
    with pytest.raises(ValueError, match=r"lacks data/train-\d+\.parquet of the version \w+ that the run began with"):
        MelDataset(str(other), run=run)
