"""Disk space of workers: a bound on prefetched files, and removal of abandoned folders.

A worker removes only the folders that killed processes left.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from audiodiff_platform.audio_files import Inputs, Source, fetched
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.scratch import remove_abandoned, scratch_folder
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.shard_runner import ShardRunner
from audiodiff_platform.work.shard_work import Record, ShardWork
from tests.servers.stores import Store

HOLDS_SCRATCH = """
import sys
from pathlib import Path
from audiodiff_platform.storage.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as scratch:
    (scratch / "part").write_bytes(b"unfinished")
    print(scratch, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def music(store: Store) -> Inputs:
    """Five objects of 100 bytes and one object of 400 bytes."""
    folder = Folder(f"{store.make_bucket()}/music")
    for number, size in enumerate((100, 100, 100, 400, 100, 100)):
        folder.write(f"{number}.wav", bytes(size))
    return Inputs(folder.uri)


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_no_more_is_fetched_ahead_than_the_scratch_may_hold(
    music: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiodiff_platform.audio_files.fetching.SCRATCH_BYTES", 350)
    taken: list[Source] = []

    def planned() -> Iterator[Source]:
        for source in sorted(music.sources(), key=lambda source: source.uri):
            taken.append(source)
            yield source

    ahead = []
    for source, fetching in fetched(music, planned(), tmp_path):
        assert fetching.result().stat().st_size == source.size
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= max(350, source.size)
        ahead.append(len(taken))
    assert ahead == [4, 4, 4, 5, 6, 6]  # one source more is taken than is fetched
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_source_that_the_disk_cannot_hold_is_named(
    music: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = next(source for source in music.sources() if source.uri == "3.wav")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=399))
    with pytest.raises(OSError, match=rf"3\.wav: 0 MB do not fit in {tmp_path}, 0 MB are free: free space"):
        music.fetch(source, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=400))
    assert music.fetch(source, tmp_path).stat().st_size == 400


class Idle:
    """A worker that does nothing."""

    def shard(self, shard: int, attempts: Attempts) -> Record:
        raise NotImplementedError


@pytest.mark.parametrize("place", ["output", "temporary"])
def test_a_worker_removes_what_killed_processes_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    parent = tmp_path / ("out/_tmp" if place == "output" else "tmp")
    (tmp_path / "tmp").mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDS_SCRATCH, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    killed, living = (Path(str(process.stdout and process.stdout.readline()).strip()) for process in processes)
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait()
    (parent / "audiodiff-scratch-another.host-abcdefgh" / "files").mkdir(parents=True)
    (parent / "audiodiff-attempts-1").mkdir()
    with scratch_folder(parent) as own:
        ShardRunner(ShardWork("idle", Idle, (), str(tmp_path / "out")))
        assert not killed.parent.exists()
        assert (living / "part").read_bytes() == b"unfinished"
        assert own.is_dir()
    assert not own.parent.exists()
    processes[1].communicate(timeout=60)
    assert sorted(entry.name for entry in parent.iterdir()) == [
        "audiodiff-attempts-1",
        "audiodiff-scratch-another.host-abcdefgh",
    ]


def test_what_another_user_left_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scratch_folder(tmp_path) as scratch:
        abandoned = tmp_path / f"{scratch.parent.name[:-8]}abcdefgh"
    (abandoned / "files").mkdir(parents=True)
    (tmp_path / f"{abandoned.name[:-1]}i").symlink_to(tmp_path)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    remove_abandoned(tmp_path)
    assert abandoned.exists()
    monkeypatch.undo()
    remove_abandoned(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{abandoned.name[:-1]}i"]
