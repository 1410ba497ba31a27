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
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from safetensors.torch import load_file

from audiodiff_core.checkpoint import RECORD, ModelRecord, save_model
from audiodiff_core.models import parameter_count
from audiodiff_core.training.cost import TrainingCost, peak_flops, share_of_peak, training_cost
from audiodiff_platform.cluster import connected
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.hub import claim_repository, publish_model
from audiodiff_platform.mel_data.run_folder import EMA_WEIGHTS, MODEL
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.train.checkpoints import (
    best_checkpoint,
    local_checkpoint,
    newest_checkpoint,
    step_of,
    validation_results,
)
from audiodiff_platform.train.diffusion_worker import train_worker
from audiodiff_platform.train.inputs import TrainingInputs, held_out, load_training_inputs, require_encodings
from audiodiff_platform.train.options import TrainOptions
from audiodiff_platform.train.shared_steps import (
    described,
    group_for,
    model_folder,
    require_own_folder,
    require_space,
    run_training,
    with_usable_paths,
)
from audiodiff_platform.train.trackers import require_trackers
from audiodiff_platform.train.validation.beside_training import validation_beside
from audiodiff_platform.train.validation.diffusion import require_previews, validate, validates
from audiodiff_platform.train.worker_group import Group

TRAIN_SETTINGS = "train.json"


def train(options: TrainOptions) -> dict[str, Any]:
    """Runs the job; says how far training came and where the model is."""
    began = time.monotonic()
    options = with_usable_paths(options)
    require_trackers(options.report_to)
    start = load_training_inputs(options, device="meta")
    options = options.resolved(start.objective)
    start.objective.scheduler(options.scheduler)  # which the model is written with at the end
    require_encodings(options, start)
    require_previews(options, start.dataset)
    if options.keep == "best" and options.best_by == "validation_loss" and held_out(start.dataset) is None:
        raise ValueError(
            f"keep best: {options.dataset_name} has no held-out tracks to tell by: prepare it with validation_fraction, or keep last, or best_by frechet"
        )
    if options.push_to_hub:
        claim_repository(options.push_to_hub, "model")
    output, settings = Folder(options.output_dir), options.settings(**start.digests)
    require_own_folder(options, output, TRAIN_SETTINGS, settings)
    with owned(output, options.take_over) as lease:
        metrics = _finished(options, start, output)
        if metrics is None:
            require_space(options, output, parameter_count(start.network))
            say(f"{start.dataset.rows} slices of {described(start.dataset)}")
            with connected(dashboard=True):
                group = group_for(options)
                _require_optimizer(options, group)
                cost = _cost(options, start, group.least)
                say(f"{cost.describe()}; {_length(options, start)}")
                validation = validation_beside(validate, options, group) if validates(options, start.dataset) else None
                claimed = TRAIN_SETTINGS, settings
                run_training(
                    train_worker,
                    options,
                    start.dataset,
                    claimed=claimed,
                    versions=start.versions,
                    lease=lease,
                    group=group,
                    validation=validation,
                )
            metrics = write_model(options, output, cost)
    if options.push_to_hub:
        publish_model(output, MODEL, options.push_to_hub)
    return {"verb": "train", "model": f"{output.uri}/{MODEL}", "seconds": round(time.monotonic() - began, 1), **metrics}


def _require_optimizer(options: TrainOptions, group: Group) -> None:
    """Raises ValueError where the workers cannot make the optimizer that is asked for."""
    if options.optimizer != "adamw_8bit":
        return
    if not group.gpu:
        raise ValueError(f"optimizer {options.optimizer} needs a CUDA GPU, and the cluster has none: use adamw")
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"optimizer {options.optimizer} needs the package bitsandbytes: pip install 'audiodiff[bitsandbytes]', or use adamw"
        )


def _cost(options: TrainOptions, start: TrainingInputs, workers: int) -> TrainingCost:
    return training_cost(
        start.network,
        options.train_batch_size // workers,
        optimizer=options.optimizer,
        gradient_checkpointing=options.gradient_checkpointing,
        precision=options.mixed_precision,
    )


def _length(options: TrainOptions, start: TrainingInputs) -> str:
    """How long training will be, as far as that is told; the time of the rest is shown once the rate is known."""
    each = options.train_batch_size * options.gradient_accumulation_steps
    steps = options.steps_at_most(start.dataset.rows)
    bounds = [
        "" if steps is None else f"{steps:,} steps of {each} samples, {steps * each / start.dataset.rows:.1f} epochs",
        "" if options.max_train_minutes is None else f"{options.max_train_minutes:g} minutes",
    ]
    return "at most " + " or ".join(bound for bound in bounds if bound)


def write_model(options: TrainOptions, output: Folder, cost: TrainingCost) -> dict[str, float]:
    """Makes the model folder from the averaged weights of the checkpoint that is to be kept; gives its metrics and what training reached."""
    name = newest_checkpoint(output)
    assert name is not None, "training ended without a checkpoint"
    if options.keep == "best" and (best := best_checkpoint(output, options.best_by)) is not None:
        name = best
    elif options.keep == "best":
        say(
            f"warning: keep best: no checkpoint that is left has a {options.best_by}, the model is the last one's ({name})"
        )
    start = load_training_inputs(options)
    with local_checkpoint(output, name) as (folder, progress):
        start.network.load_state_dict(load_file(folder / EMA_WEIGHTS))
    validation = {
        name: value
        for name, value in validation_results(output).get(step_of(name), {}).items()
        if isinstance(value, int | float)
    }
    counts = {"steps": progress["step"], "samples": progress["samples"], "seconds": round(progress["seconds"], 1)}
    metrics = {**counts, **_reached(options, cost, progress), **progress["logged"], **validation}
    record = ModelRecord(recipe=options.recipe(), data_digest=start.dataset.digest, metrics=metrics)
    with model_folder(output) as folder:
        save_model(
            folder, start.network, start.objective.scheduler(options.scheduler), start.mel, record, vae=start.vae
        )
    return metrics


def _reached(options: TrainOptions, cost: TrainingCost, progress: Mapping[str, Any]) -> dict[str, float]:
    """Samples per second over the whole training and, on GPUs of a known half-precision peak, the share of it."""
    rate = progress["samples"] / max(progress["seconds"], 1e-9)
    peak = peak_flops(progress["device"], "fp16" if options.mixed_precision == "fp16" else "bf16")
    share = (
        {}
        if peak is None
        else {"share_of_peak": round(share_of_peak(cost.flops_per_sample, rate / progress["workers"], peak), 4)}
    )
    return {"samples_per_second": round(rate, 2), **share}


def _finished(options: TrainOptions, start: TrainingInputs, output: Folder) -> dict[str, float] | None:
    """The metrics of the model that is there, where it was trained just so."""
    if not output.exists(f"{MODEL}/{RECORD}"):
        return None
    record = ModelRecord.model_validate(output.read_json(f"{MODEL}/{RECORD}"))
    return record.metrics if record.recipe == options.recipe() and record.data_digest == start.dataset.digest else None
