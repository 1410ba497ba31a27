"""A mel dataset -> a trained model, on 1 to N workers of Ray Train.

1. The settings are claimed; the number of workers and the stopping point may differ from run to run, nothing else.
2. Workers step together (`training_loop.py`, `train_worker.py`); rank 0 writes checkpoints, from which a rerun or restarted workers
   go on (`training_state.py`).
3. At the end rank 0 writes `OUTPUT_DIR/model`, with the averaged weights.

    OUTPUT_DIR/train.json      settings and their digest
    OUTPUT_DIR/state/          checkpoints
    OUTPUT_DIR/metrics.jsonl   a line each LOG_STEPS steps; tensorboard/ likewise
    OUTPUT_DIR/model/          the finished model
"""

import time
from typing import Any, TypeVar

import torch

from audiodiff_core.checkpoint import RECORD, ModelRecord
from audiodiff_core.models import build_unet, check_resolution, parameter_count
from audiodiff_platform import commits
from audiodiff_platform.cluster import connected, cpus, gpus, require_resources, require_shared, say, usable_path
from audiodiff_platform.data_order import STREAMS
from audiodiff_platform.dataset import TrainingImages
from audiodiff_platform.imported import open_dataset
from audiodiff_platform.ray_training import run_workers
from audiodiff_platform.run_log import require_trackers
from audiodiff_platform.storage import Folder
from audiodiff_platform.train_options import RunOptions, TrainOptions
from audiodiff_platform.train_worker import train_worker
from audiodiff_platform.training_state import newest_checkpoint, remove_superseded

SETTINGS = "train.json"
OptionsT = TypeVar("OptionsT", bound=RunOptions)

BYTES_PER_PARAMETER = 16  # float32 weights, their average and AdamW's two moments


def train(options: TrainOptions) -> dict[str, Any]:
    """Runs the job; says how far training came and where the model is."""
    began = time.monotonic()
    options = with_usable_paths(options)
    require_trackers(options.report_to)
    dataset = open_dataset(options.dataset_name, options.mel_config)
    check_resolution(options.preset, dataset.mel)
    output = Folder(options.output_dir)
    commits.require_same(output, SETTINGS, options.settings(dataset.digest))
    require_resumable(options, output)
    if finished := _finished(options, dataset, output):
        return {"verb": "train", "model": f"{output.uri}/model", "seconds": round(time.monotonic() - began, 1), **finished}
    with torch.device("meta"):
        parameters = parameter_count(build_unet(options.preset, dataset.mel))
    output.require_free_space(parameters * BYTES_PER_PARAMETER * (options.checkpoints_kept + 3), "training")
    say(f"{options.preset}: {parameters / 1e6:.1f} M parameters, {dataset.rows} slices of {described(dataset)}")
    with connected():
        workers, gpu = workers_for(options)
        require_shared("dataset_name", options.dataset_name, dataset.witness)
        if options.mel_config is not None:
            require_shared("mel_config", options.mel_config, witness="")
        commits.claim(output, SETTINGS, options.settings(dataset.digest))
        require_shared("output_dir", options.output_dir, SETTINGS)
        remove_superseded(output, options.checkpoints_kept)
        run_workers(train_worker, options, workers, gpu)
    metrics = _finished(options, dataset, output)
    assert metrics is not None, "training ended without a model"
    return {"verb": "train", "model": f"{output.uri}/model", "seconds": round(time.monotonic() - began, 1), **metrics}


def with_usable_paths(options: OptionsT) -> OptionsT:
    """The options with paths that every process of the job can use."""
    places = {"dataset_name": usable_path("dataset_name", options.dataset_name, hub_id=True), "output_dir": usable_path("output_dir", options.output_dir)}
    if options.mel_config is not None:
        places["mel_config"] = usable_path("mel_config", options.mel_config)
    return options.model_copy(update=places)


def require_resumable(options: RunOptions, output: Folder) -> None:
    """Raises ValueError where the option resume does not suit what the run folder holds."""
    if options.resume == "auto":
        return
    newest = newest_checkpoint(output)
    if options.resume == "never" and newest is not None:
        raise ValueError(f"resume never: {output.uri} holds a checkpoint ({newest}): use another folder, or resume auto to go on from it")
    if options.resume == "must" and newest is None:
        raise ValueError(f"resume must: {output.uri} holds no whole checkpoint to go on from: use resume auto to start anew")


def workers_for(options: RunOptions) -> tuple[int | tuple[int, int], bool]:
    """How many workers, and whether on GPUs; raises ValueError where the cluster has not, and cannot grow to, what they need."""
    gpu = gpus() > 0
    workers = options.num_workers or max(options.usable_workers(1, min(STREAMS, gpus() if gpu else cpus())))
    require_resources(workers if isinstance(workers, int) else workers[0], gpus_each=int(gpu))
    if options.mixed_precision == "fp16" and not gpu:
        raise ValueError("mixed_precision fp16 needs a GPU, and the cluster has none: use bf16 or no")
    return workers, gpu


def described(dataset: TrainingImages) -> str:
    mel = dataset.mel
    return f"{mel.x_res}x{mel.y_res}, {mel.sample_rate} Hz, hop length {mel.hop_length}, n_fft {mel.n_fft} (by {dataset.mel_origin})"


def _finished(options: TrainOptions, dataset: TrainingImages, output: Folder) -> dict[str, float] | None:
    """The metrics of the model that is there, where it was trained just so."""
    if not output.exists(f"model/{RECORD}"):
        return None
    record = ModelRecord.model_validate(output.read_json(f"model/{RECORD}"))
    return record.metrics if record.recipe == options.recipe() and record.data_digest == dataset.digest else None
