"""generate in two stages, as on GPUs: the files of one stage, whichever process dies, and one row for each loop."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from audiodiff_core.pipeline import Failure, Loop
from audiodiff_core.sampling import GenerateRequest
from audiodiff_platform.generate import job as generate_module
from audiodiff_platform.generate import stage
from audiodiff_platform.generate.handover import GenerateFinisher
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.loop_files import LoopFiles
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.request_plan import PlannedLoop
from audiodiff_platform.generate.worker import GenerateWorker
from audiodiff_platform.mel_data.loops_folder import LOOPS_PAGE, LOOPS_RUN
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work.engine import Engine, RayDataEngine
from tests.in_process import in_process

pytestmark = pytest.mark.workers

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module

COUNT = 20  # in three shards, of 8, 8 and 4 loops
BAD_SEED, DEADLY_SEED, FAULTY_SEED = 5, 13, 3


class Watched:
    """Pipeline that fails at BAD_SEED, and whose process dies once at DEADLY_SEED if there are deaths."""

    def __init__(self, pipeline: Any, fault: str, log: Path) -> None:
        self.pipeline, self.fault, self.log = pipeline, fault, log

    def outcomes(self, requests: Iterable[GenerateRequest], **options: Any) -> Iterator[Loop | Failure]:
        for loop in self.pipeline.outcomes(requests, **options):
            seed = loop.request.seed
            if seed == BAD_SEED:
                error = FloatingPointError(f"seed {BAD_SEED}: the sample is not finite")
                yield Failure(loop.request, loop.number, error)
                continue
            if self.fault == "deaths" and seed == DEADLY_SEED and first(self.log / "worker died"):
                wait_for((self.log / "finisher died").exists)
                os.kill(os.getpid(), signal.SIGKILL)
            yield loop

    @property
    def sampling_s(self) -> float:
        return float(self.pipeline.sampling_s)


class FaultyFiles(LoopFiles):
    """Writer whose storage fails once at FAULTY_SEED, or whose process dies there once or always."""

    def written(self, loop: PlannedLoop, made: Loop) -> dict[str, Any]:
        row, log = super().written(loop, made), Path(f"{self.output.root}.log")
        (log / f"finisher {os.getpid()}").touch()
        if loop.id == f"{FAULTY_SEED:010d}":
            fault = (log / "fault").read_text()
            if fault == "storage" and first(log / "storage failed"):
                raise ConnectionResetError("the store is out of reach")
            if (fault == "deaths" and first(log / "finisher died")) or fault == "poison":
                os.kill(os.getpid(), signal.SIGKILL)
        return row


class FaultyFinisher(GenerateFinisher):
    files_class = FaultyFiles


class FaultyWorker(GenerateWorker):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        log = Path(f"{self.output.root}.log")
        (log / f"worker {os.getpid()}").touch()
        self.pipeline: Any = Watched(self.pipeline, (log / "fault").read_text(), log)


def first(event: Path) -> bool:
    """Note an event, and return True the first time."""
    try:
        event.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def wait_for(event: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not event():
        assert time.monotonic() < deadline, "the event did not come"
        time.sleep(0.01)


def options(model: Path, out: Path, **more: Any) -> GenerateOptions:
    return GenerateOptions(model=str(model), output_dir=str(out), steps=2, batch_size=2, **{"count": COUNT, **more})


@contextmanager
def two_stages(*_: object, **__: object) -> Iterator[Engine]:
    """Yield the engine of a GPU, with CPUs in place of GPUs."""
    yield RayDataEngine(1, 0, 1)


def prepared(folder: Path, fault: str) -> Path:
    """Return the output folder of a job with a fault."""
    (folder / "loops.log").mkdir()
    (folder / "loops.log" / "fault").write_text(fault)
    return folder / "loops"


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes jobs have two stages and a fault, and returns the output folder of the next job."""
    monkeypatch.setattr(stage, "engine", two_stages)
    monkeypatch.setattr(generate_module, "GenerateWorker", FaultyWorker)
    monkeypatch.setattr(generate_module, "GenerateFinisher", FaultyFinisher)
    return partial(prepared, tmp_path)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The loops of one stage."""
    out = prepared(tmp_path_factory.mktemp("whole"), "none")
    with in_process(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate_module, "GenerateWorker", FaultyWorker)
        generate(options(model, out))
    return out


def _content(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder except those that name the generation of a lease or the rate of a run."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in (LOOPS_RUN, LOOPS_PAGE))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.parent.name != "_commits"}


def _records(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the commit records without the timings."""
    records = commits.committed(Folder(str(folder)))
    times = {"seconds", "sampling_s"}
    return {
        shard: {name: value for name, value in record.items() if name not in times} for shard, record in records.items()
    }


def test_two_stages_give_the_files_of_one(
    local_ray: None, whole: Path, model: Path, faulty: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = faulty("none")
    summary = generate(options(model, out))
    assert _content(out) == _content(whole)
    assert _records(out) == _records(whole)
    (worker,), (finisher,) = (out.parent.glob(f"loops.log/{kind} *") for kind in ("worker", "finisher"))
    assert worker.name.split()[1] != finisher.name.split()[1], "both stages are in one process"
    assert (summary["loops"], summary["failed"]) == (COUNT - 1, 1)
    rows = pq.read_table(out / "manifest").to_pylist()
    reasons = {row["seed"]: row["reason"] for row in rows if row["path"] is None}
    assert reasons == {BAD_SEED: f"FloatingPointError: seed {BAD_SEED}: the sample is not finite"}
    assert 0 < summary["sampler_busy"] < 1
    assert re.search(r"^loops: .*, the sampler was busy \d+% of the workers' time$", capsys.readouterr().err, re.M)
    for record in commits.committed(Folder(str(out))).values():
        assert 0 < record["sampling_s"] < record["seconds"]


@pytest.mark.soak_short
def test_deaths_in_both_stages_cost_nothing_but_time(
    local_ray: None, whole: Path, model: Path, faulty: Callable[[str], Path]
) -> None:
    out = faulty("deaths")
    summary = generate(options(model, out))
    assert {file.name for file in out.parent.glob("loops.log/* died")} == {"worker died", "finisher died"}
    assert (summary["loops"], summary["failed"]) == (COUNT - 1, 1)
    assert _content(out) == _content(whole)
    assert _records(out) == _records(whole)


@pytest.mark.soak_short
def test_storage_that_fails_in_the_second_stage_costs_a_retry(
    local_ray: None, whole: Path, model: Path, faulty: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = faulty("storage")
    generate(options(model, out))
    assert "storage failed at 1 of 3 shards, such as 0 (the store is out of reach): retrying" in capsys.readouterr().err
    assert _content(out) == _content(whole)
    assert _records(out) == _records(whole)


@pytest.mark.soak
def test_a_loop_that_kills_finishers_costs_itself_alone(
    local_ray: None, whole: Path, model: Path, faulty: Callable[[str], Path]
) -> None:
    out = faulty("poison")
    assert generate(options(model, out))["failed"] == 2
    expected = {name: content for name, content in _content(whole).items() if name.startswith("audio/")}
    del expected[f"audio/{FAULTY_SEED:010d}.wav"]
    assert {name: content for name, content in _content(out).items() if name.startswith("audio/")} == expected
    reasons = {row["seed"]: row["reason"] for row in pq.read_table(out / "manifest").to_pylist()}
    assert len(reasons) == COUNT
    assert reasons[FAULTY_SEED] == "killed 2 worker processes"


@pytest.mark.soak_short
def test_candidates_are_measured_in_the_second_stage(
    local_ray: None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = {"reject": ["seam", "duplicate"], "max_seam_score": 1.1, "count": 4, "pictures": True, "format": "flac"}
    with in_process():
        generate(options(model, tmp_path / "one", **gate))
    monkeypatch.setattr(stage, "engine", two_stages)
    generate(options(model, tmp_path / "two", **gate))
    assert _content(tmp_path / "two") == _content(tmp_path / "one")
