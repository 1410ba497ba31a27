"""Job that trains a diffusion model on a mel dataset, with one or more workers of Ray Train.

1. The job claims the run folder for its settings. A later run in the same folder may change the stopping point, the
   number of workers and other options that do not affect the weights.
2. The workers step together (`loop.py`, `diffusion_worker.py`). Rank 0, or each worker of an FSDP run, writes
   checkpoints, from which restarted workers and later runs resume (`checkpoints.py`).
3. At the end, the job writes the model with the averaged weights.

    OUTPUT_DIR/train.json      settings and their digest
    OUTPUT_DIR/state/          checkpoints
    OUTPUT_DIR/metrics.jsonl   one line every LOG_STEPS steps; tensorboard/ holds the same values
    OUTPUT_DIR/model/          the finished model
"""

import time
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

from audiodiff_core.checkpoint import RECORD, ModelRecord, save_model
from audiodiff_core.models import parameter_count
from audiodiff_core.training.cost import TrainingCost, peak_flops, share_of_peak, training_cost
from audiodiff_platform.cluster import connected
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.hub import claim_repository, publish_model
from audiodiff_platform.mel_data.run_folder import MODEL
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.train.checkpoints import (
    best_checkpoint,
    local_checkpoint,
    newest_checkpoint,
    step_of,
    validation_results,
)
from audiodiff_platform.train.choices import choose, describe, least_micro_batch, with_recorded
from audiodiff_platform.train.diffusion_worker import train_worker, worker_memory
from audiodiff_platform.train.inputs import TrainingInputs, load_training_inputs, require_encodings, validation_split
from audiodiff_platform.train.options import TrainOptions
from audiodiff_platform.train.placement import group_for
from audiodiff_platform.train.sharded_checkpoints import averaged_weights
from audiodiff_platform.train.shared_steps import (
    describe_dataset,
    model_folder,
    require_own_folder,
    require_space,
    run_training,
    with_usable_paths,
)
from audiodiff_platform.train.trackers import require_trackers
from audiodiff_platform.train.validation.beside_training import validation_beside, with_validation_place
from audiodiff_platform.train.validation.diffusion import require_previews, validate, validates
from audiodiff_platform.train.worker_group import Group

TRAIN_SETTINGS = "train.json"


def train(options: TrainOptions) -> dict[str, Any]:
    """Train a diffusion model, and return a summary: the path of the model, seconds, counts and metrics.

    Raises:
        ValueError: Options or inputs contradict each other.
        JobError: Training failed.
    """
    began = time.monotonic()
    options = with_usable_paths(options)
    require_trackers(options.report_to)
    inputs = load_training_inputs(options, device="meta")
    options = options.resolved(inputs.objective)
    inputs.objective.scheduler(options.scheduler)  # rejects a scheduler that does not suit the objective
    require_encodings(options, inputs)
    require_previews(options, inputs.dataset)
    if options.keep == "best" and options.best_by == "validation_loss" and validation_split(inputs.dataset) is None:
        raise ValueError(
            f"keep best: {options.dataset_name} has no held-out tracks: prepare it with validation_fraction, "
            "or set keep last or best_by frechet"
        )
    if options.push_to_hub:
        claim_repository(options.push_to_hub, "model")
    output, stated = Folder(options.output_dir), options
    options = recorded = with_recorded(options, output, TRAIN_SETTINGS)
    require_own_folder(options, output, TRAIN_SETTINGS, options.settings(**inputs.digests))
    with owned(output, options.take_over) as lease:
        metrics = _finished_metrics(options, inputs, output)
        if metrics is None:
            require_space(options, output, parameter_count(inputs.network))
            say(f"{inputs.dataset.rows} slices of {describe_dataset(inputs.dataset)}")
            with connected(dashboard=True):
                group = group_for(options)
                require_device(options, group)
                memory_of = partial(worker_memory, inputs.network, inputs.vae)
                options, group, gpu = choose(options, group, inputs.dataset.rows, memory_of)
                optimizer, compiled = options.optimizer, options.torch_compile
                say(describe(options, group, gpu, stated, recorded, optimizer=optimizer, compiled=compiled))
                cost = _cost(options, inputs, least_micro_batch(options, group, gpu, memory_of))
                say(f"{cost.describe()}; {_limits_text(options, inputs)}")
                options = with_validation_place(options, group)
                validation = (
                    validation_beside(validate, options, group)
                    if validates(options, inputs.dataset) and options.validate_in == "task"
                    else None
                )
                claimed = TRAIN_SETTINGS, options.settings(**inputs.digests)
                run_training(
                    train_worker,
                    options,
                    inputs.dataset,
                    claimed=claimed,
                    versions=inputs.versions,
                    lease=lease,
                    group=group,
                    validation=validation,
                )
            metrics = write_model(options, output, cost)
    if options.push_to_hub:
        publish_model(output, MODEL, options.push_to_hub)
    return {"verb": "train", "model": f"{output.uri}/{MODEL}", "seconds": round(time.monotonic() - began, 1), **metrics}


def require_device(options: TrainOptions, group: Group) -> None:
    """Check that the workers can shard the weights and run the optimizer.

    Raises:
        ValueError: The workers run on CPUs, or a package is missing.
    """
    if options.fsdp and not group.gpu:
        raise ValueError("fsdp needs GPUs, and the workers run on CPUs: omit fsdp")
    if options.optimizer != "adamw_8bit":
        return
    if not group.gpu:
        raise ValueError(f"optimizer {options.optimizer} needs a CUDA GPU, and the cluster has none: use adamw")
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"optimizer {options.optimizer} needs the package bitsandbytes: "
            "pip install 'audiodiff[bitsandbytes]', or use adamw"
        )


def _cost(options: TrainOptions, inputs: TrainingInputs, samples: int) -> TrainingCost:
    return training_cost(
        inputs.network,
        samples,
        optimizer=options.optimizer,
        gradient_checkpointing=options.gradient_checkpointing,
        precision=options.autocast,
        vae=inputs.vae,
    )


def _limits_text(options: TrainOptions, inputs: TrainingInputs) -> str:
    """Return the limits of training as text for the console."""
    samples = options.batch_size * options.gradient_accumulation_steps
    steps = options.step_limit(inputs.dataset.rows)
    limits = [
        ""
        if steps is None
        else f"{steps:,} steps of {samples} samples, {steps * samples / inputs.dataset.rows:.1f} epochs",
        "" if options.max_train_minutes is None else f"{options.max_train_minutes:g} minutes",
    ]
    return "at most " + " or ".join(limit for limit in limits if limit)


def write_model(options: TrainOptions, output: Folder, cost: TrainingCost) -> dict[str, float]:
    """Write the model folder from the averaged weights of the last or the best checkpoint.

    Args:
        options: Options of the run.
        output: The run folder.
        cost: Cost of training, for the share of the peak performance.

    Returns:
        The metrics of the model: counts, throughput, last log line and validation metrics.
    """
    name = newest_checkpoint(output)
    assert name is not None, "training ended without a checkpoint"
    if options.keep == "best" and (best := best_checkpoint(output, options.best_by)) is not None:
        name = best
    elif options.keep == "best":
        say(
            f"warning: keep best: no remaining checkpoint has a {options.best_by}: "
            f"writing the model from the last checkpoint ({name})"
        )
    inputs = load_training_inputs(options)
    with local_checkpoint(output, name) as (folder, progress):
        inputs.network.load_state_dict(averaged_weights(folder))
    validation = {
        name: value
        for name, value in validation_results(output).get(step_of(name), {}).items()
        if isinstance(value, int | float)
    }
    counts = {"steps": progress["step"], "samples": progress["samples"], "seconds": round(progress["seconds"], 1)}
    metrics = {**counts, **_throughput(options, cost, progress), **progress["logged"], **validation}
    record = ModelRecord(
        recipe=options.recipe(),
        data_digest=inputs.dataset.digest,
        metrics=metrics,
        encoder=inputs.encoder,
        conditions=inputs.conditions,
    )
    with model_folder(output) as folder:
        save_model(
            folder, inputs.network, inputs.objective.scheduler(options.scheduler), inputs.mel, record, vae=inputs.vae
        )
    return metrics


def _throughput(options: TrainOptions, cost: TrainingCost, progress: Mapping[str, Any]) -> dict[str, float]:
    """Return samples per second and, if known, the achieved share of the GPU's half-precision peak."""
    rate = progress["samples"] / max(progress["seconds"], 1e-9)
    peak = peak_flops(progress["device"], "fp16" if options.precision == "fp16" else "bf16")
    share = (
        {}
        if peak is None
        else {"share_of_peak": round(share_of_peak(cost.flops_per_sample, rate / progress["workers"], peak), 4)}
    )
    return {"samples_per_second": round(rate, 2), **share}


def _finished_metrics(options: TrainOptions, inputs: TrainingInputs, output: Folder) -> dict[str, float] | None:
    """Return the metrics of the finished model if it has the same recipe and data, else None."""
    if not output.exists(f"{MODEL}/{RECORD}"):
        return None
    record = ModelRecord.model_validate(output.read_json(f"{MODEL}/{RECORD}"))
    return record.metrics if record.recipe == options.recipe() and record.data_digest == inputs.dataset.digest else None
