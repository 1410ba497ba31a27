"""The process of a training worker: its device, and the end of a training that lacks memory on the GPU."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch
from accelerate import Accelerator

from audiodiff_platform.storage import Folder
from audiodiff_platform.train import worker_group, worker_process
from audiodiff_platform.train.checkpoints import checkpoint_name, put_checkpoint
from audiodiff_platform.train.options import TrainOptions
from audiodiff_platform.train.restarts import count_start
from audiodiff_platform.train.run_options import RunOptions
from audiodiff_platform.train.worker_group import Group, run_workers
from audiodiff_platform.train.worker_process import join_workers, run_worker


def _options(output: Path, **changes: Any) -> TrainOptions:
    settings = {"train_batch_size": 8, "mixed_precision": "no", **changes}
    return TrainOptions(dataset_name="none", output_dir=str(output), **settings)


@pytest.mark.parametrize("gpu", [False, True])
def test_workers_on_cpus_see_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    """They would initialize CUDA, and accelerate would take the GPU for the device."""
    environments: list[dict[str, Any]] = []

    def trainer(*_: Any, run_config: ray.train.RunConfig, **__: Any) -> Any:
        environments.append(dict(run_config.worker_runtime_env or {}))
        return SimpleNamespace(fit=lambda: SimpleNamespace(return_value=None))

    monkeypatch.setattr(worker_group, "TorchTrainer", trainer)
    monkeypatch.setattr(worker_group, "wait_for_places", lambda *_: None)
    run_workers(lambda config: None, _options(tmp_path), Group(workers=1, gpu=gpu))
    assert environments == [{} if gpu else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}]


def _joined(options: RunOptions, monkeypatch: pytest.MonkeyPatch, device: str, workers: int) -> dict[str, Any]:
    """Return the arguments of the accelerator of a worker on a device."""
    given: dict[str, Any] = {}

    def accelerator(**arguments: Any) -> Any:
        given.update(arguments)
        return SimpleNamespace(num_processes=workers)

    monkeypatch.setattr(worker_process, "Accelerator", accelerator)
    monkeypatch.setattr(worker_process, "set_float32", lambda precision: given.update(float32=precision))
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_size=lambda: workers))
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device(device))
    join_workers(options)
    return given


def test_accelerate_takes_the_device_that_ray_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twelve GPUs, the third worker has GPU 2, which is the fifth of CUDA_VISIBLE_DEVICES 0,1,10,11,2,..."""
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert _joined(_options(tmp_path, train_batch_size=12), monkeypatch, "cuda:4", 12)["cpu"] is False
    assert os.environ["LOCAL_RANK"] == "4"


def test_a_worker_without_a_gpu_computes_on_its_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _joined(_options(tmp_path), monkeypatch, "cpu", 4)["cpu"] is True
    assert os.environ["LOCAL_RANK"] == "2"


@pytest.mark.parametrize(("precision", "autocast"), [("tf32", "no"), ("no", "no"), ("bf16", "bf16")])
def test_tf32_is_a_float32_that_nothing_is_cast_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, autocast: str
) -> None:
    joined = _joined(_options(tmp_path, mixed_precision=precision), monkeypatch, "cuda:0", 1)
    assert (joined["float32"], joined["mixed_precision"]) == (precision, autocast)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_lack_of_memory_ends_training_with_its_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """One of several workers ends the group, whose next start ends the training. The others may wait for it."""
    accelerator: Any = SimpleNamespace(num_processes=workers, is_main_process=True)
    monkeypatch.setattr(worker_process, "join_workers", lambda *_: accelerator)
    monkeypatch.setattr(worker_process, "broadcast_object_list", lambda values: values)
    output, options = Folder(str(tmp_path)), _options(tmp_path, vae="vae")

    def train(accelerator: Accelerator) -> None:
        put_checkpoint(output, checkpoint_name(10, "aaaa"), lambda folder: None, {"step": 10})
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    if workers > 1:
        with pytest.raises(torch.OutOfMemoryError):
            run_worker(options, train)
    reason = run_worker(options, train)
    assert reason == (
        "the GPU is out of memory (CUDA out of memory. Tried to allocate 2 GiB): set gradient_checkpointing, or "
        "train in another folder with a train_batch_size below 8, or with latents of encode --latents"
    )
    if workers > 1:
        assert count_start(output, workers) is None, "the next job has no restarts"


def test_remedies_are_not_those_that_a_training_has_already(tmp_path: Path) -> None:
    options = _options(tmp_path, gradient_checkpointing=True)
    assert worker_process._out_of_memory(options, torch.OutOfMemoryError("CUDA out of memory")) == (
        "the GPU is out of memory (CUDA out of memory): train in another folder with a train_batch_size below 8"
    )
