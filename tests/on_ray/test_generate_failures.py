"""Loops that cannot be generated: other loops are unaffected, and the manifest states the reason."""

import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from ray import cloudpickle

from audiodiff_core.pipeline import Failure, Loop
from audiodiff_core.sampling import GenerateRequest
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.generate import job as generate_module
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.worker import GenerateWorker
from tests.in_process import in_process

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module

BAD_SEED = 5
COUNT = 20  # in two shards, of 16 and 4 loops
DEFAULT = GenerateRequest(steps=1)


class Failing:
    """Pipeline that fails at one seed, after the loops before this seed."""

    def __init__(self, pipeline: Any, fault: str, log: Path) -> None:
        self.pipeline, self.fault, self.log, self.sampling_s = pipeline, fault, log, 0.0
        self.batch: Callable[[], torch.Tensor | None] = lambda: None

    def outcomes(self, requests: Iterable[GenerateRequest], **options: Any) -> Iterator[Loop | Failure]:
        requests = list(requests)
        if requests == [DEFAULT]:
            with self.log.open("a") as log:
                log.write("default " if self.batch() is None else "default beside a batch ")
        if self.fault == "no memory":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 MiB.")
        for loop in self.pipeline.outcomes(requests, **options):
            if loop.request.seed == BAD_SEED:
                with self.log.open("a") as log:
                    log.write(f"{len(requests)} ")
                match self.fault:
                    case "not finite":
                        error = FloatingPointError(f"seed {BAD_SEED}: the sample is not finite")
                        yield Failure(loop.request, loop.number, error)
                        continue
                    case "too large":
                        raise MemoryError(f"seed {BAD_SEED} needs too much memory")
                    case "too large for the GPU":
                        batch = torch.zeros(1)
                        self.batch = weakref.ref(batch)
                        raise torch.OutOfMemoryError("CUDA out of memory.")
                    case "death":
                        os.kill(os.getpid(), signal.SIGKILL)
                    case "out of order":
                        raise RuntimeError("CUDA error: device-side assert triggered")
            if self.fault == "out of order":
                raise RuntimeError("CUDA error: device-side assert triggered")
            yield loop


def failing(fault: str) -> type[GenerateWorker]:
    """Return a class of workers whose pipelines have `fault`."""

    class FailingWorker(GenerateWorker):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.pipeline: Any = Failing(self.pipeline, fault, Path(self.output.path("log")))

    return FailingWorker


def options(model: Path, out: Path) -> GenerateOptions:
    return GenerateOptions(model=str(model), output_dir=str(out), count=COUNT, steps=2, num_workers=1)


@pytest.fixture(scope="module")
def whole(local_ray: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "loops"
    with in_process():
        generate(options(model, out))
    return out


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        ("not finite", f"FloatingPointError: seed {BAD_SEED}: the sample is not finite", "20 "),
        ("too large", f"MemoryError: seed {BAD_SEED} needs too much memory", "20 11 1 default "),
        ("too large for the GPU", "OutOfMemoryError: CUDA out of memory.", "20 11 1 default "),
        pytest.param(
            "death",
            "killed 2 worker processes",
            "20 16 1 1 ",
            marks=[pytest.mark.workers, pytest.mark.soak],
        ),
    ],
)
def test_a_loop_that_fails_costs_itself_alone(
    whole: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, reason: str, tries: str
) -> None:
    out = tmp_path / "loops"
    monkeypatch.setattr(generate_module, "GenerateWorker", failing(fault))
    summary = generate(options(model, out))
    assert (summary["loops"], summary["failed"]) == (COUNT - 1, 1)
    assert (out / "log").read_text() == tries
    expected = {file.name: file.read_bytes() for file in (whole / "audio").iterdir() if int(file.stem) != BAD_SEED}
    assert {file.name: file.read_bytes() for file in (out / "audio").iterdir()} == expected
    rows = {row["seed"]: row for row in pq.read_table(out / "manifest").to_pylist()}
    assert sorted(rows) == list(range(COUNT))
    assert (rows[BAD_SEED]["path"], rows[BAD_SEED]["sha256"], rows[BAD_SEED]["reason"]) == (None, None, reason)
    assert {row["reason"] for seed, row in rows.items() if seed != BAD_SEED} == {None}
    assert (out / "_SUCCESS").exists()
    assert not (out / "_attempts").exists()


def test_too_little_memory_for_any_loop_is_no_fault_of_the_loops(
    local_ray: None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "loops"
    monkeypatch.setattr(generate_module, "GenerateWorker", failing("no memory"))
    with pytest.raises(JobError) as raised:
        generate(GenerateOptions(model=str(model), output_dir=str(out), count=COUNT, num_workers=1, batch_size=2))
    assert str(raised.value) == (
        "a worker failed: JobError: batch_size 2: the memory of cpu does not suffice for a batch, even of a single "
        "loop of the default width (OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.): "
        "free memory there, or use a smaller batch_size and another output_dir"
    )
    assert not list(out.glob("_commits/*"))


def test_a_machine_that_is_out_of_order_is_no_fault_of_the_loops(
    local_ray: None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_module, "GenerateWorker", failing("out of order"))
    with pytest.raises(JobError, match="a worker failed: RuntimeError: CUDA error"):
        generate(options(model, tmp_path / "loops"))
    assert not (tmp_path / "loops" / "_SUCCESS").exists()
    assert not list((tmp_path / "loops").glob("_commits/*"))
