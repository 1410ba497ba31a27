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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ray.train import ValidationConfig, ValidationTaskConfig
from safetensors.torch import load_file

from audiodiff_core.checkpoint import RECORD, ModelRecord, save_model, upload_model
from audiodiff_core.models import parameter_count
from audiodiff_platform import commits
from audiodiff_platform.cluster import WORKER_ENVIRONMENT, connected, cpus, gpus, require_resources, require_shared, say, usable_path
from audiodiff_platform.data_order import STREAMS
from audiodiff_platform.dataset import TrainingImages
from audiodiff_platform.ray_training import run_workers
from audiodiff_platform.run_log import require_trackers
from audiodiff_platform.starting_point import StartingPoint, require_encodings, starting_point
from audiodiff_platform.storage import Folder
from audiodiff_platform.train_options import RunOptions, TrainOptions
from audiodiff_platform.train_worker import train_worker
from audiodiff_platform.training_state import (
    EMA_WEIGHTS,
    best_checkpoint,
    local_checkpoint,
    newest_checkpoint,
    remove_superseded,
    step_of,
    validation_results,
)
from audiodiff_platform.validation import validate, validates

SETTINGS = "train.json"
MODEL = "model"
INPUTS = ("mel_config", "from_pretrained", "vae", "latents", "encodings")
HUB_IDS = ("dataset_name", "from_pretrained", "vae")

OptionsT = TypeVar("OptionsT", bound=RunOptions)

BYTES_PER_PARAMETER = 16  # float32 weights, their average and AdamW's two moments


def train(options: TrainOptions) -> dict[str, Any]:
    """Runs the job; says how far training came and where the model is."""
    began = time.monotonic()
    options = with_usable_paths(options)
    require_trackers(options.report_to)
    start = starting_point(options, device="meta")
    require_encodings(options, start)
    output = Folder(options.output_dir)
    settings = options.settings(**start.digests)
    commits.require_same(output, SETTINGS, settings)
    require_resumable(options, output)
    if finished := _finished(options, start, output):
        return {"verb": "train", "model": f"{output.uri}/{MODEL}", "seconds": round(time.monotonic() - began, 1), **finished}
    parameters = parameter_count(start.network)
    output.require_free_space(parameters * BYTES_PER_PARAMETER * (options.checkpoints_kept + 3), "training")
    say(f"{parameters / 1e6:.1f} M parameters, {start.dataset.rows} slices of {described(start.dataset)}")
    with connected():
        workers, gpu = workers_for(options)
        require_shared("dataset_name", options.dataset_name, start.dataset.witness)
        for place in INPUTS:
            if (uri := getattr(options, place)) is not None:
                require_shared(place, uri, witness="")
        commits.claim(output, SETTINGS, settings)
        require_shared("output_dir", options.output_dir, SETTINGS)
        remove_superseded(output, options.checkpoints_kept)
        run_workers(train_worker, options, workers, gpu, _validation(options, start, workers, gpu))
        metrics = write_model(options, output)
    return {"verb": "train", "model": f"{output.uri}/{MODEL}", "seconds": round(time.monotonic() - began, 1), **metrics}


def _validation(options: TrainOptions, start: StartingPoint, workers: int | tuple[int, int], gpu: bool) -> ValidationConfig | None:
    """Ray Train's validation, where there is anything to be made of a checkpoint: on a GPU that training leaves free, or else on a CPU."""
    if not validates(options, start.dataset):
        return None
    spare = gpu and gpus() > (workers if isinstance(workers, int) else workers[1])
    return ValidationConfig(
        validate,
        ValidationTaskConfig(fn_kwargs={"options": options.model_dump(mode="json")}),
        {"num_cpus": 0, "num_gpus": int(spare), "runtime_env": {"env_vars": WORKER_ENVIRONMENT}},
    )


def write_model(options: TrainOptions, output: Folder) -> dict[str, float]:
    """Makes the model folder from the averaged weights of the checkpoint that is to be kept; gives its metrics."""
    name = newest_checkpoint(output)
    if options.keep == "best" and (best := best_checkpoint(output)) is not None:
        name = best
    assert name is not None, "training ended without a checkpoint"
    start = starting_point(options)
    with local_checkpoint(output, name) as (folder, progress):
        start.network.load_state_dict(load_file(folder / EMA_WEIGHTS))
    validation = {name: value for name, value in validation_results(output).get(step_of(name), {}).items() if isinstance(value, int | float)}
    counts = {"steps": progress["step"], "samples": progress["samples"], "seconds": round(progress["seconds"], 1)}
    metrics = {**counts, **progress["logged"], **validation}
    record = ModelRecord(recipe=options.recipe(), data_digest=start.dataset.digest, metrics=metrics)
    with model_folder(output) as folder:
        save_model(folder, start.network, start.objective.scheduler(options.scheduler), start.mel, record, vae=start.vae)
    return metrics


@contextmanager
def model_folder(output: Folder) -> Iterator[Path]:
    """OUTPUT_DIR/model, or for an object store a local folder that is then uploaded to it."""
    if output.is_local:
        yield Path(output.path(MODEL))
        return
    with output.scratch() as scratch:
        yield scratch / MODEL
        upload_model(scratch / MODEL, f"{output.uri}/{MODEL}")


def with_usable_paths(options: OptionsT) -> OptionsT:
    """The options with paths that every process of the job can use."""
    stated = {name: getattr(options, name, None) for name in ("dataset_name", "output_dir", *INPUTS)}
    places = {name: usable_path(name, uri, hub_id=name in HUB_IDS) for name, uri in stated.items() if uri is not None}
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


def _finished(options: TrainOptions, start: StartingPoint, output: Folder) -> dict[str, float] | None:
    """The metrics of the model that is there, where it was trained just so."""
    if not output.exists(f"{MODEL}/{RECORD}"):
        return None
    record = ModelRecord.model_validate(output.read_json(f"{MODEL}/{RECORD}"))
    return record.metrics if record.recipe == options.recipe() and record.data_digest == start.dataset.digest else None
