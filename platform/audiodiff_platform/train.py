"""A mel dataset -> a trained model, on 1 to N workers of Ray Train.

1. The settings are claimed; the number of workers and the stopping point may differ from run to run, nothing else.
2. Workers step together (`train_worker.py`); rank 0 reports checkpoints, from which a rerun or a restarted worker goes on.
3. At the end rank 0 writes `OUTPUT_DIR/model`, with the averaged weights.

    OUTPUT_DIR/train.json      settings and their digest
    OUTPUT_DIR/state/          Ray Train's checkpoints: live and averaged weights, optimizer, progress
    OUTPUT_DIR/metrics.jsonl   a line each LOG_STEPS steps
    OUTPUT_DIR/model/          the finished model
"""

import os
import threading
import time
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from audiodiff_core.models import PRESETS, PresetName, build_unet, check_resolution, parameter_count
from audiodiff_core.objectives import PredictionType, SchedulerName
from audiodiff_platform import commits
from audiodiff_platform.cluster import connected, cpus, gpus, require_resources, require_shared, require_usable_path, say
from audiodiff_platform.dataset import STREAMS, MelDataset
from audiodiff_platform.job import JobError
from audiodiff_platform.recipe import Options
from audiodiff_platform.storage import Folder

FORMAT_VERSION = 1
SETTINGS = "train.json"
STATE = "state"
DEFAULT_EPOCHS = 100
WORKER_FAILURES_SURVIVED = 3
CHECKPOINTS_KEPT = 2
BYTES_PER_PARAMETER = 16  # float32 weights, their average and AdamW's two moments


class TrainOptions(Options):
    """What to train on which data, for how long. The mel parameters come with the data."""

    dataset_name: str = pydantic.Field(description="mel dataset made by prepare: a path, s3:// or gs://")
    output_dir: str = pydantic.Field(description="run folder, the model in its subfolder model: a path, s3:// or gs://")
    preset: PresetName = pydantic.Field("tiny", description=f"network: {', '.join(PRESETS)}")
    prediction_type: PredictionType | None = pydantic.Field(None, description="what the network predicts: epsilon, v_prediction or sample; none: the preset's")
    scheduler: SchedulerName = pydantic.Field("ddim", description="scheduler that the model is saved with: ddim or ddpm")
    max_train_steps: int | None = pydantic.Field(None, ge=0, description="stop after this many optimizer steps")
    num_epochs: int | None = pydantic.Field(None, ge=1, description=f"stop after this many passes over the data; {DEFAULT_EPOCHS} where no stop is given")
    max_train_minutes: float | None = pydantic.Field(None, gt=0, description="stop after this many minutes of training")
    train_batch_size: int = pydantic.Field(16, ge=1, description="samples per forward pass, over all workers")
    gradient_accumulation_steps: int = pydantic.Field(1, ge=1, description="forward passes per optimizer step")
    learning_rate: float = pydantic.Field(1e-4, gt=0, description="peak of the learning rate")
    lr_warmup_steps: int = pydantic.Field(500, ge=0, description="steps over which the learning rate rises to its peak")
    mixed_precision: Literal["no", "bf16", "fp16"] = pydantic.Field("no", description="arithmetic of the forward pass: no (float32), bf16 or fp16")
    checkpoint_minutes: float = pydantic.Field(5.0, gt=0, description="minutes between checkpoints: what a failure costs at most")
    seed: int = pydantic.Field(0, ge=0, le=2**63 - 1, description="names initial weights, data order and noise")
    num_workers: int | None = pydantic.Field(None, ge=1, description="training processes, a CPU or GPU each; none: all GPUs, else all CPUs")

    @pydantic.model_validator(mode="after")
    def _workers_divide(self) -> Self:
        for name, whole in (("train_batch_size", self.train_batch_size), ("streams of the data order", STREAMS)):
            if self.num_workers and whole % self.num_workers:
                raise ValueError(f"num_workers {self.num_workers} does not divide {name} ({whole})")
        return self

    def settings(self, data_digest: str) -> dict[str, Any]:
        """All that decides the weights after a given number of steps, but for rounding."""
        free = {"output_dir", "dataset_name", "max_train_steps", "num_epochs", "max_train_minutes", "checkpoint_minutes", "num_workers"}
        return {"format_version": FORMAT_VERSION, "data_digest": data_digest, **self.model_dump(exclude=free)}

    def steps_at_most(self, rows: int) -> int | None:
        """The step at which training stops, or None where only the clock stops it."""
        per_epoch = rows / (self.train_batch_size * self.gradient_accumulation_steps)
        epochs = self.num_epochs
        if epochs is None and self.max_train_steps is None and self.max_train_minutes is None:
            epochs = DEFAULT_EPOCHS
        bounds = [bound for bound in (self.max_train_steps, None if epochs is None else max(1, round(epochs * per_epoch))) if bound is not None]
        return min(bounds, default=None)


def train(options: TrainOptions) -> dict[str, Any]:
    """Runs the job; says how far training came and where the model is."""
    began = time.monotonic()
    require_usable_path("dataset_name", options.dataset_name)
    require_usable_path("output_dir", options.output_dir)
    dataset = MelDataset(options.dataset_name)
    check_resolution(options.preset, dataset.mel)
    with torch.device("meta"):
        parameters = parameter_count(build_unet(options.preset, dataset.mel))
    output = Folder(options.output_dir)
    output.require_free_space(parameters * BYTES_PER_PARAMETER * (CHECKPOINTS_KEPT + 2), "training")
    commits.claim(output, SETTINGS, options.settings(dataset.digest))
    say(f"{options.preset}: {parameters / 1e6:.1f} M parameters, {dataset.rows} slices of {dataset.mel.x_res}x{dataset.mel.y_res}")
    with connected():
        gpu = gpus() > 0
        workers = options.num_workers or _all_workers(options, gpu)
        require_resources(workers, gpus_each=int(gpu))
        if not output.exists():
            output.write(f"{STATE}/.keep", b"")
        require_shared("dataset_name", options.dataset_name)
        require_shared("output_dir", options.output_dir)
        metrics = _fit(options, workers, gpu)
    return {"verb": "train", "model": f"{output.uri}/model", "num_workers": workers, "seconds": round(time.monotonic() - began, 1), **metrics}


def _all_workers(options: TrainOptions, gpu: bool) -> int:
    """The most workers that the cluster has and that divide both the batch and the streams."""
    available = gpus() if gpu else cpus()
    return max(n for n in range(1, available + 1) if options.train_batch_size % n == 0 and STREAMS % n == 0)


def _fit(options: TrainOptions, workers: int, gpu: bool) -> dict[str, Any]:
    """Runs Ray Train until the end; Ctrl-C stays a KeyboardInterrupt, since `fit` is not on the main thread."""
    from audiodiff_platform.train_worker import train_worker

    storage = options.output_dir if "://" in options.output_dir else os.path.abspath(options.output_dir)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"options": options.model_dump() | {"output_dir": storage, "dataset_name": _absolute(options.dataset_name)}},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(
            name=STATE,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=WORKER_FAILURES_SURVIVED),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
        ),
    )
    outcome: list[Any] = []

    def fit() -> None:
        try:
            outcome.append(trainer.fit())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=fit, name="train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=1)
    if isinstance(outcome[0], TrainingFailedError):
        raise JobError(_cause(outcome[0])) from outcome[0]
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    metrics: dict[str, Any] = outcome[0].metrics
    return metrics


def _absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).absolute())


def _cause(error: TrainingFailedError) -> str:
    """The line that says why training failed: the first worker's own error where there is one."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    first = next(iter(failures.values()))
    return f"training failed: {str(getattr(first, 'cause', first)).strip().splitlines()[-1]}"
