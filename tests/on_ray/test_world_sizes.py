"""Groups of 3, 5 and 16 workers take the same steps as one worker, and validate their checkpoints together."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file

from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import step_of, validation_results, whole_checkpoints
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.diffusion_worker import train_worker
from audiodiff_platform.train.options import TrainOptions
from audiodiff_platform.train.validation.diffusion import validate
from tests.in_process import in_process

pytestmark = pytest.mark.workers

BATCH = 18
PLACES = 4  # logical CPUs of the tests' Ray


def _options(dataset: Path, output: Path, workers: int) -> TrainOptions:
    return TrainOptions(
        dataset_name=str(dataset),
        output_dir=str(output),
        max_train_steps=30,
        train_batch_size=BATCH,
        learning_rate=1e-3,
        lr_warmup_steps=5,
        num_workers=workers,
        preview_count=3,
        validate_in="group",
        mixed_precision="no",
    )


@pytest.fixture(scope="module")
def split(local_ray: None, loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of images of 16x16 with held-out tracks."""
    folder = tmp_path_factory.mktemp("split") / "mel"
    options = {"input_dir": str(loops), "output_dir": str(folder), "resolution": "16", "validation_fraction": 0.3}
    with in_process():
        prepare(PrepareOptions(**options, hop_length=1_024, num_workers=1))
    return folder


@pytest.fixture(scope="module")
def alone(split: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one worker."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with in_process():
        train(_options(split, folder, workers=1))
    return folder


def _losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def _averages(run: Path) -> torch.Tensor:
    (checkpoint,) = (run / "state").glob("step-000000030-*")
    return torch.cat([weights.flatten() for weights in load_file(checkpoint / "ema.safetensors").values()])


def _trained(split: Path, folder: Path, workers: int) -> Path:
    """Train by a group of workers, which share the logical CPUs, and return the run folder."""
    run, values = folder / "run", _options(split, folder / "run", workers).model_dump()

    def worker() -> None:
        assert ray.train.get_context().get_world_size() == workers
        assert train_worker({"options": values, "token": None}) is None

    resources = {"CPU": min(1.0, PLACES / workers)}
    TorchTrainer(
        worker,
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker=resources),
        run_config=RunConfig(name="ray", storage_path=str(folder / "ray")),
    ).fit()
    return run


@pytest.mark.parametrize("workers", [3, 5, 16])
@pytest.mark.soak
def test_a_group_trains_and_validates_as_one_worker(split: Path, alone: Path, tmp_path: Path, workers: int) -> None:
    run = _trained(split, tmp_path, workers)
    assert _losses(run) == pytest.approx(_losses(alone), rel=1e-4)
    expected, trained = _averages(alone), _averages(run)
    assert float((expected - trained).norm() / expected.norm()) < 1e-5
    assert validation_results(Folder(str(run)))[30] == pytest.approx(
        validation_results(Folder(str(alone)))[30], rel=1e-4
    )


@pytest.mark.soak_short
def test_the_group_validates_as_a_task_beside_training(split: Path, alone: Path) -> None:
    output = Folder(str(alone))
    (name,) = whole_checkpoints(output)
    in_group = validation_results(output)[step_of(name)]
    assert in_group["validation_loss"] > 0
    options: dict[str, Any] = _options(split, alone, workers=1).model_dump(mode="json")
    with in_process():
        assert validate(name, options) == pytest.approx(in_group, rel=1e-6)
    assert not output.names("_in_validation/*")
