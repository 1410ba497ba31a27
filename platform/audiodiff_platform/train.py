"""A mel dataset -> a trained model, on 1 to N workers of Ray Train.

1. The settings are claimed; the number of workers and the stopping point may differ from run to run, nothing else.
2. Workers step together (`train_worker.py`); rank 0 reports checkpoints, from which a rerun or restarted workers go on
   (`training_state.py`).
3. At the end rank 0 writes `OUTPUT_DIR/model`, with the averaged weights.

    OUTPUT_DIR/train.json      settings and their digest
    OUTPUT_DIR/state/          Ray Train's checkpoints, a folder for each attempt
    OUTPUT_DIR/metrics.jsonl   a line each LOG_STEPS steps
    OUTPUT_DIR/model/          the finished model
"""

import threading
import time
from datetime import UTC, datetime
from typing import Any

import torch
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from audiodiff_core.checkpoint import RECORD, ModelRecord
from audiodiff_core.models import build_network, check_resolution, parameter_count
from audiodiff_platform import commits
from audiodiff_platform.cluster import connected, cpus, gpus, require_resources, require_shared, say, usable_path
from audiodiff_platform.data_order import STREAMS
from audiodiff_platform.dataset import TrainingImages
from audiodiff_platform.imported import open_dataset
from audiodiff_platform.job import JobError, cause_of
from audiodiff_platform.storage import Folder
from audiodiff_platform.train_options import TrainOptions
from audiodiff_platform.train_worker import train_worker
from audiodiff_platform.training_state import STATE, remove_older

SETTINGS = "train.json"
WORKER_FAILURES_SURVIVED = 3
CHECKPOINTS_KEPT = 2
BYTES_PER_PARAMETER = 16  # float32 weights, their average and AdamW's two moments


def train(options: TrainOptions) -> dict[str, Any]:
    """Runs the job; says how far training came and where the model is."""
    began = time.monotonic()
    places = {"dataset_name": usable_path("dataset_name", options.dataset_name, hub_id=True), "output_dir": usable_path("output_dir", options.output_dir)}
    if options.mel_config is not None:
        places["mel_config"] = usable_path("mel_config", options.mel_config)
    options = options.model_copy(update=places)
    dataset = open_dataset(options.dataset_name, options.mel_config)
    check_resolution(options.preset, dataset.mel)
    output = Folder(options.output_dir)
    commits.require_same(output, SETTINGS, options.settings(dataset.digest))
    if finished := _finished(options, dataset, output):
        return {"verb": "train", "model": f"{output.uri}/model", "seconds": round(time.monotonic() - began, 1), **finished}
    with torch.device("meta"):
        parameters = parameter_count(build_network(options.preset, dataset.mel))
    output.require_free_space(parameters * BYTES_PER_PARAMETER * (CHECKPOINTS_KEPT + 2), "training")
    say(f"{options.preset}: {parameters / 1e6:.1f} M parameters, {dataset.rows} slices of {_described(dataset)}")
    with connected():
        gpu = gpus() > 0
        workers = options.num_workers or _all_workers(options, gpu)
        require_resources(workers, gpus_each=int(gpu))
        if options.mixed_precision == "fp16" and not gpu:
            raise ValueError("mixed_precision fp16 needs a GPU, and the cluster has none: use bf16 or no")
        require_shared("dataset_name", options.dataset_name, dataset.witness)
        if options.mel_config is not None:
            require_shared("mel_config", options.mel_config, witness="")
        commits.claim(output, SETTINGS, options.settings(dataset.digest))
        require_shared("output_dir", options.output_dir, SETTINGS)
        remove_older(output)
        _fit(options, workers, gpu)
    metrics = _finished(options, dataset, output)
    assert metrics is not None, "training ended without a model"
    return {"verb": "train", "model": f"{output.uri}/model", "seconds": round(time.monotonic() - began, 1), **metrics}


def _described(dataset: TrainingImages) -> str:
    mel = dataset.mel
    return f"{mel.x_res}x{mel.y_res}, {mel.sample_rate} Hz, hop length {mel.hop_length}, n_fft {mel.n_fft} (by {dataset.mel_origin})"


def _finished(options: TrainOptions, dataset: TrainingImages, output: Folder) -> dict[str, float] | None:
    """The metrics of the model that is there, where it was trained just so."""
    if not output.exists(f"model/{RECORD}"):
        return None
    record = ModelRecord.model_validate(output.read_json(f"model/{RECORD}"))
    return record.metrics if record.recipe == options.recipe() and record.data_digest == dataset.digest else None


def _all_workers(options: TrainOptions, gpu: bool) -> int:
    """The most workers that the cluster has and that divide both the batch and the streams."""
    available = gpus() if gpu else cpus()
    return max(n for n in range(1, available + 1) if options.train_batch_size % n == 0 and STREAMS % n == 0)


def _fit(options: TrainOptions, workers: int, gpu: bool) -> None:
    """Runs Ray Train until the end; Ctrl-C stays a KeyboardInterrupt, since `fit` is not on the main thread."""
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"options": options.model_dump()},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(
            name=f"{datetime.now(UTC):%Y-%m-%d_%H-%M-%S.%f}",
            storage_path=f"{options.output_dir}/{STATE}",
            failure_config=FailureConfig(max_failures=WORKER_FAILURES_SURVIVED),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
            logging_config=LoggingConfig(log_level="WARNING"),
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
    if outcome[0].return_value is not None:
        raise JobError(f"training failed: {outcome[0].return_value}")


def _cause(error: TrainingFailedError) -> str:
    """The line that says why training failed: the first worker's own error where there is one."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    first = next(iter(failures.values()))
    return f"training failed: {cause_of(first)}"
