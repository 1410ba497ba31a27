"""Checkpoints of a run on a local disk, S3 and GCS: whole or absent, found again, few kept.

Damaged checkpoints are passed over, and a full disk is tolerated.
"""

import json
import math
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from audiodiff_platform.mel_data.run_folder import PROGRESS, VALIDATION_RESULTS
from audiodiff_platform.storage import Folder
from audiodiff_platform.train import resume
from audiodiff_platform.train.checkpoints import (
    best_checkpoint,
    checkpoint_name,
    damaged_files,
    local_checkpoint,
    newest_checkpoint,
    put_checkpoint,
    remove_superseded,
    whole_checkpoints,
)
from audiodiff_platform.train.resume import load_newest
from audiodiff_platform.train.validation_marks import (
    finish_validation,
    in_validation,
    queue_for_validation,
    requeue_validations,
    start_validation,
    validations_not_started,
)
from tests.servers.stores import Stores


def _saves(text: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        (folder / "weights").write_text(text)
        (folder / "optimizer").write_text(text * 2)

    return save


@pytest.fixture(params=["local", "s3", "gs"])
def output(request: pytest.FixtureRequest, stores: Stores, tmp_path: Path) -> Folder:
    """An empty run folder on each kind of storage."""
    return Folder(
        str(tmp_path / "run") if request.param == "local" else f"{getattr(stores, request.param).make_bucket()}/run"
    )


def _put(output: Folder, step: int, attempt: str = "aaaa") -> str:
    name = checkpoint_name(step, attempt)
    put_checkpoint(output, name, _saves(f"step {step} of {attempt}"), {"step": step})
    return name


def test_a_checkpoint_is_found_and_read_as_it_was_written(output: Folder) -> None:
    assert newest_checkpoint(output) is None
    names = [_put(output, step) for step in (20, 100)]
    assert whole_checkpoints(output) == names
    assert newest_checkpoint(output) == names[1]
    with local_checkpoint(output, names[1]) as (folder, progress):
        assert damaged_files(folder, progress) == []
        assert (folder / "weights").read_text() == "step 100 of aaaa"
        assert progress["step"] == 100
    assert not list(output.names("_tmp/**"))


def test_what_is_not_whole_is_passed_over_and_damage_is_found(output: Folder) -> None:
    damaged, short, unmarked = (_put(output, step) for step in (20, 30, 40))
    output.remove(f"{unmarked}/{PROGRESS}")
    output.write(f"{short}/weights", b"")
    assert newest_checkpoint(output) == damaged
    content = output.read(f"{damaged}/weights")
    output.write(f"{damaged}/weights", content.swapcase())
    with local_checkpoint(output, damaged) as (folder, progress):
        assert damaged_files(folder, progress) == ["weights"]


class _Loaded:
    """Learner that notes the text of the checkpoint that it loads."""

    def __init__(self) -> None:
        self.text = ""

    def load(self, folder: Path, progress: Mapping[str, Any]) -> None:
        del progress
        self.text = (folder / "weights").read_text()


@pytest.fixture
def accelerator() -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)


def _damage(output: Folder, name: str) -> None:
    output.write(f"{name}/weights", output.read(f"{name}/weights").swapcase())


def test_a_damaged_checkpoint_does_not_remain_the_newest(output: Folder, accelerator: Accelerator) -> None:
    """It would let the intact ones be removed as superseded."""
    intact, damaged = (_put(output, step) for step in (20, 30))
    queue_for_validation(output, damaged)
    _damage(output, damaged)
    learner: Any = _Loaded()
    found = load_newest(output, accelerator, learner)
    assert found is not None
    assert (found[0], learner.text) == (intact, "step 20 of aaaa")
    assert whole_checkpoints(output) == [intact]
    assert not output.names(f"{damaged}/*")
    assert in_validation(output) == {}
    newer = _put(output, 25, "bbbb")
    remove_superseded(output, kept=1, metric="validation_loss")
    assert whole_checkpoints(output) == [newer]


def test_a_checkpoint_that_cannot_be_read_is_not_removed(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, learner = Folder(str(tmp_path / "run")), _Loaded()
    names = [_put(output, step) for step in (20, 30)]
    with monkeypatch.context() as patch:
        patch.setattr(resume, "damaged_files", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(OSError, match="Input/output error"):
            load_newest(output, accelerator, learner)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:  # only the first of two nodes has a bad copy
        _damage(output, names[1])
        patch.setattr(resume, "gather_object", lambda own: [*own, replace(own[0], node=1, damaged=[])])
        load_newest(output, accelerator, learner)  # type: ignore[arg-type]
    assert learner.text == "step 20 of aaaa"
    assert whole_checkpoints(output) == names


def test_the_last_and_the_best_are_kept(output: Folder) -> None:
    names = {step: _put(output, step) for step in (10, 20, 30, 40)}
    twin = _put(output, 20, "bbbb")
    for step, loss in ((10, 0.2), (20, 0.1), (30, 0.3)):
        output.write_json(f"{VALIDATION_RESULTS}/{step}.json", {"validation_loss": loss})
    output.write(f"{checkpoint_name(15, 'cccc')}/weights", b"cut off by a kill")
    output.write(f"{checkpoint_name(50, 'dddd')}/weights", b"just being written")
    assert best_checkpoint(output, "validation_loss") in {names[20], twin}
    remove_superseded(output, kept=2, metric="validation_loss")
    assert set(whole_checkpoints(output)) == {names[30], names[40], best_checkpoint(output, "validation_loss")}
    assert not output.exists(f"{checkpoint_name(15, 'cccc')}/weights")
    assert output.exists(f"{checkpoint_name(50, 'dddd')}/weights")


def test_what_is_being_validated_is_kept_until_its_result_is_there(output: Folder) -> None:
    names = [_put(output, step) for step in (10, 20, 30)]
    queue_for_validation(output, names[1])
    remove_superseded(output, kept=1, metric="validation_loss")
    assert whole_checkpoints(output) == names[1:]
    assert [start_validation(output, names[1]) for _ in range(2)] == [1, 2]
    output.write_json(f"{VALIDATION_RESULTS}/20.json", {"frechet": 0.5})
    finish_validation(output, names[1])
    remove_superseded(output, kept=1, metric="validation_loss")
    assert whole_checkpoints(output) == names[2:]


def test_what_a_killed_job_had_in_validation_is_handed_over_again(output: Folder) -> None:
    names = [checkpoint_name(step, "aaaa") for step in (10, 20, 30)]
    for begun, name in zip((0, 1, 3), names, strict=True):
        queue_for_validation(output, name)
        for _ in range(begun):
            start_validation(output, name)
    assert validations_not_started(output) == names[:1]
    requeue_validations(output)
    assert validations_not_started(output) == names
    assert in_validation(output) == dict(zip(names, (0, 1, 3), strict=True))
    assert start_validation(output, names[2]) == 4


def test_numbers_that_are_not_finite_are_not_the_best(output: Folder) -> None:
    names = [_put(output, step) for step in (10, 20, 30)]
    for step, loss in ((10, math.nan), (20, 0.2), (30, math.inf)):
        output.write_json(f"{VALIDATION_RESULTS}/{step}.json", {"validation_loss": loss})
    assert best_checkpoint(output, "validation_loss") == names[1]
    output.remove(names[1])
    assert best_checkpoint(output, "validation_loss") is None


def test_the_best_is_told_by_the_figure_that_is_asked_for(output: Folder) -> None:
    names = [_put(output, step) for step in (10, 20, 30)]
    for step, loss, distance in ((10, 0.3, 0.5), (20, 0.1, 0.9)):
        output.write_json(
            f"{VALIDATION_RESULTS}/{step}.json", {"validation_loss": loss, "frechet": distance, "n_candidate": 64}
        )
    assert [best_checkpoint(output, figure) for figure in ("validation_loss", "frechet", "kernel")] == [
        names[1],
        names[0],
        None,
    ]
    output.write_json(f"{VALIDATION_RESULTS}/30.json", {"frechet": 0.7, "n_candidate": 64})
    output.write_json(f"{VALIDATION_RESULTS}/10.json", {"frechet": 0.5, "n_candidate": 128})
    assert best_checkpoint(output, "frechet") == names[2], "distances of other numbers of previews were compared"
    output.write_json(f"{VALIDATION_RESULTS}/10.json", {"frechet": 0.5, "n_candidate": 64})
    remove_superseded(output, kept=1, metric="frechet")
    assert whole_checkpoints(output) == [names[0], names[2]]


def test_previews_alone_make_no_checkpoint_the_best(output: Folder) -> None:
    names = [_put(output, step) for step in (10, 20)]
    output.write_json(f"{VALIDATION_RESULTS}/10.json", {"frechet": 0.5})
    assert best_checkpoint(output, "validation_loss") is None
    remove_superseded(output, kept=1, metric="validation_loss")
    assert whole_checkpoints(output) == names[1:]


def test_a_write_that_fails_leaves_the_checkpoint_before(output: Folder) -> None:
    before = _put(output, 10)

    def fails(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        put_checkpoint(output, checkpoint_name(20, "aaaa"), fails, {"step": 20})
    assert whole_checkpoints(output) == [before]
    assert not list(output.names("_tmp/**"))


def test_a_checkpoint_of_another_version_is_no_checkpoint(output: Folder) -> None:
    name = _put(output, 10)
    mark = output.read_json(f"{name}/{PROGRESS}")
    output.write(f"{name}/{PROGRESS}", json.dumps({**mark, "format_version": 1}).encode())
    assert newest_checkpoint(output) is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk_costs_no_checkpoint(small_disk: Path) -> None:
    output = Folder(str(small_disk / "run"))
    before = _put(output, 10)
    with pytest.raises(OSError, match="No space left"):
        put_checkpoint(output, checkpoint_name(20, "aaaa"), lambda folder: _fill(folder / "weights"), {"step": 20})
    assert whole_checkpoints(output) == [before]
    assert _put(output, 30) == newest_checkpoint(output)


def _fill(file: Path) -> None:
    file.write_bytes(bytes(2 << 20))
