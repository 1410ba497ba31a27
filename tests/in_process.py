"""Jobs without worker processes: shards, trainings and validations run in the test's own process.

The imports of a worker process take seconds, and most tests do not depend on worker processes.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from accelerate.state import AcceleratorState
from fsspec.implementations.local import LocalFileSystem
from ray.train import ScalingConfig, ValidationConfig
from ray.train.torch import TorchTrainer

from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.train import shared_steps
from audiodiff_platform.train.run_options import RunOptions
from audiodiff_platform.train.validation import beside_training
from audiodiff_platform.train.worker_group import Group
from audiodiff_platform.work import engine


def _one_worker(num_workers: int | None, device: str) -> tuple[int, int]:
    del device
    assert num_workers in (None, 1), f"a test of {num_workers} workers needs the marker `workers`"
    return 1, 0


@contextmanager
def _no_connection(**_: Any) -> Iterator[None]:
    yield


def _run_here(
    worker: Callable[[dict[str, Any]], str | None],
    options: RunOptions,
    group: Group,
    validation: ValidationConfig | None = None,
    token: str | None = None,
) -> None:
    """Run one worker of a training in Ray Train's local mode."""
    del validation
    assert options.num_workers in (None, 1), f"a test of {group.workers} workers needs the marker `workers`"
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier training had other options
    config = {"options": options.model_dump(), "token": token}
    trainer = TorchTrainer(worker, train_loop_config=config, scaling_config=ScalingConfig(num_workers=0))
    reason = trainer.fit().return_value
    if reason is not None:
        raise JobError(f"training failed: {reason}")


def _validate_here(validate: Any, checkpoint: Any, *, name: str, options: Mapping[str, Any], **_: Any) -> Any:
    del checkpoint
    return beside_training.validate_in_task(validate, name, dict(options), all_cores=False)


@contextmanager
def in_process() -> Iterator[None]:
    """Run shards of jobs, trainings (by one worker) and validations (after training) in this process."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        storage = SimpleNamespace(experiment_fs_path=folder, storage_filesystem=LocalFileSystem())
        context = SimpleNamespace(get_world_size=lambda: 1, get_node_rank=lambda: 0, get_storage=lambda: storage)
        patch.setattr(engine, "connected", _no_connection)
        patch.setattr(engine, "workers_for", _one_worker)
        patch.setattr(engine, "RayDataEngine", lambda workers, gpus, finishers: engine.InProcess())
        patch.setattr(ray.train, "get_context", lambda: context)
        patch.setattr(shared_steps, "run_workers", _run_here)
        patch.setattr(beside_training, "validate_in_own_task", _validate_here)
        patch.setattr(os, "nice", lambda increment: 0)
        yield
