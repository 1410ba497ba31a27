"""Job that trains an autoencoder of mel images, with the same loop as diffusion training.

OUTPUT_DIR/train_vae.json   settings and their digest
OUTPUT_DIR/state/           checkpoints
OUTPUT_DIR/metrics.jsonl    one line every LOG_STEPS steps; tensorboard/ holds the same values
OUTPUT_DIR/model/           the finished autoencoder with the averaged weights: AutoencoderKL of diffusers with the
                            scaling factor of its latents, mel_config.json, and audiodiff.json, which is written last
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from audiodiff_core.checkpoint import RECORD, ModelRecord, save_vae
from audiodiff_core.latents.posteriors import set_scaling_factor
from audiodiff_core.mel import Images
from audiodiff_core.models import build_vae, parameter_count
from audiodiff_core.training import TrainBatch, learning_rate
from audiodiff_core.training.vae_cost import vae_memory_bytes
from audiodiff_core.training.vae_state import VaeTrainState, check_sides
from audiodiff_core.training.vae_step import train_vae_step
from audiodiff_platform.cluster import connected
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.mel_dataset import DATASET_VERSION, MEL_CONFIG, TrainingImages
from audiodiff_platform.mel_data.original_datasets import open_dataset
from audiodiff_platform.mel_data.run_folder import MODEL
from audiodiff_platform.mel_data.sample_order import DataOrder, spread_places
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.lease import owned, require_token
from audiodiff_platform.train.choices import choose, describe, with_recorded
from audiodiff_platform.train.learner import StateLearner
from audiodiff_platform.train.loop import learn
from audiodiff_platform.train.options import TrainVaeOptions
from audiodiff_platform.train.placement import group_for
from audiodiff_platform.train.shared_steps import (
    describe_dataset,
    model_folder,
    require_own_folder,
    require_space,
    run_training,
    with_usable_paths,
)
from audiodiff_platform.train.trackers import require_trackers
from audiodiff_platform.train.validation.autoencoder import validate_vae, validates_vae
from audiodiff_platform.train.validation.beside_training import validation_beside, with_validation_place
from audiodiff_platform.train.validation.in_group import autoencoder_validation
from audiodiff_platform.train.worker_process import run_worker, samples_per_pass

TRAIN_VAE_SETTINGS = "train_vae.json"
MAX_SCALING_IMAGES = 1_024  # from which the scaling factor is computed
BATCH_SIZE = 16


def train_vae(options: TrainVaeOptions) -> dict[str, Any]:
    """Train an autoencoder, and return a summary: the path of the model, seconds, counts and metrics.

    Raises:
        ValueError: Options or inputs contradict each other.
        JobError: Training failed.
    """
    began = time.monotonic()
    options = with_usable_paths(options)
    require_trackers(options.report_to)
    dataset = open_dataset(options.dataset_name, options.mel_config, Folder(options.output_dir))
    with torch.device("meta"):
        vae = build_vae(options.preset, dataset.mel)
    check_sides(options.objective(), vae)
    parameters = parameter_count(vae)
    output, stated = Folder(options.output_dir), options
    options = recorded = with_recorded(options, output, TRAIN_VAE_SETTINGS)
    require_own_folder(options, output, TRAIN_VAE_SETTINGS, options.settings(data_digest=dataset.digest))
    with owned(output, options.take_over) as lease:
        metrics = _finished_metrics(options, dataset, output)
        if metrics is None:
            require_space(options, output, parameters)
            size = f"{parameters / 1e6:.1f} M parameters"
            say(f"{options.preset}: {size}, {dataset.rows} slices of {describe_dataset(dataset)}")
            with connected(dashboard=True):
                memory_of = partial(worker_memory, vae)
                options, group, gpu = choose(options, group_for(options), dataset.rows, memory_of)
                say(describe(options, group, gpu, stated, recorded))
                options = with_validation_place(options, group)
                validation = (
                    validation_beside(validate_vae, options, group)
                    if validates_vae(options, dataset) and options.validate_in == "task"
                    else None
                )
                versions = {DATASET_VERSION: dataset.version}
                run_training(
                    train_vae_worker,
                    options,
                    dataset,
                    claimed=(TRAIN_VAE_SETTINGS, options.settings(data_digest=dataset.digest)),
                    versions=versions,
                    lease=lease,
                    group=group,
                    validation=validation,
                )
            metrics = _finished_metrics(options, dataset, output)
            assert metrics is not None, "training ended without a model"
    return {
        "verb": "train_vae",
        "model": f"{output.uri}/{MODEL}",
        "seconds": round(time.monotonic() - began, 1),
        **metrics,
    }


def train_vae_worker(config: dict[str, Any]) -> str | None:
    """Train to the stopping point, from the newest checkpoint or from step 0.

    At the end, rank 0 writes the autoencoder.

    Args:
        config: `options` as a dictionary, and `token` of the lease of the run folder.

    Returns:
        The reason if training cannot continue, else None.
    """
    options = TrainVaeOptions.model_validate(config["options"])
    return run_worker(options, partial(_train, options, config["token"]))


def _train(options: TrainVaeOptions, token: str | None, accelerator: Accelerator) -> None:
    """Train on this worker, and write the autoencoder on rank 0."""
    order = _open_order(options)
    torch.manual_seed(options.seed)
    state = VaeTrainState(
        accelerator,
        build_vae(options.preset, order.dataset.mel),
        options.objective(),
        options.learning_rate,
        options.seed,
        ema_decay=options.ema_decay,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    validated, in_group = validates_vae(options, order.dataset), options.validate_in == "group"
    last = learn(
        options,
        accelerator,
        VaeLearner(options, accelerator, state),
        order,
        open_order=partial(_open_order, options) if options.data_workers else None,
        validates=validated and not in_group,
        validation=(
            autoencoder_validation(options, accelerator, order.dataset, state) if validated and in_group else None
        ),
        token=token,
    )
    if accelerator.is_main_process:
        if token is not None:
            require_token(Folder(options.output_dir), token)
        _write_model(options, state, order.dataset, last)


def _open_order(options: TrainVaeOptions) -> DataOrder:
    """Open the data in the order in which training reads the samples. Data workers call this function."""
    return DataOrder(open_dataset(options.dataset_name, options.mel_config, Folder(options.output_dir)), options.seed)


def worker_memory(vae: Any, options: TrainVaeOptions, workers: int, samples: int) -> int:
    """Estimate the bytes of a worker.

    Args:
        vae: A diffusers `AutoencoderKL` on any device, including meta.
        options: Options of the run, with the precision.
        workers: Number of workers, each of which holds the whole state.
        samples: Samples of a micro-batch.
    """
    del workers
    return vae_memory_bytes(
        vae,
        samples,
        options.objective(),
        gradient_checkpointing=options.gradient_checkpointing,
        precision=options.autocast,
    )


class VaeLearner(StateLearner[VaeTrainState]):
    """Learner of an autoencoder and its discriminator."""

    def __init__(self, options: TrainVaeOptions, accelerator: Accelerator, state: VaeTrainState) -> None:
        super().__init__(accelerator, state)
        self.options = options
        memory_bytes = partial(worker_memory, state.bare, options, accelerator.num_processes)
        self.samples_per_pass = samples_per_pass(options, accelerator, memory_bytes)
        objective = options.objective()
        self.weights = {
            "reconstruction": 1.0,
            "kl": objective.kl_weight,
            "spectral": objective.spectral_weight,
            "adversarial": objective.adversarial_weight,
        }

    def ready(self, batch: TrainBatch) -> TrainBatch:
        return batch

    def learn(self, micro_batches: Sequence[TrainBatch], progress: float) -> dict[str, torch.Tensor | float]:
        options = self.options
        rate = learning_rate(
            options.learning_rate, self.state.step, options.lr_warmup_steps, progress, options.lr_scheduler
        )
        parts, norm = train_vae_step(
            self.accelerator,
            self.state,
            [part for batch in micro_batches for part in batch.split(self.samples_per_pass)],
            rate,
            options.samples_per_worker(self.accelerator.num_processes),
        )
        loss = sum(weight * parts[name] for name, weight in self.weights.items() if name in parts)
        return {"loss": loss, **parts, "gradient_norm": norm, "learning_rate": rate}


def _write_model(
    options: TrainVaeOptions, state: VaeTrainState, dataset: TrainingImages, last: Mapping[str, float]
) -> None:
    """Write the model folder: averaged weights, scaling factor, mel parameters and record."""
    vae = state.bare
    vae.load_state_dict(state.ema_state_dict())
    factor = set_scaling_factor(vae.eval(), _spread_images(dataset))
    counts = {"steps": state.step, "samples": state.samples, "seconds": round(state.seconds, 1)}
    record = ModelRecord(
        recipe=options.recipe(), data_digest=dataset.digest, metrics={**counts, **last, "scaling_factor": factor}
    )
    output = Folder(options.output_dir)
    with model_folder(output) as folder:
        save_vae(folder, vae)
    output.write(f"{MODEL}/{MEL_CONFIG}", dataset.mel.to_json().encode())
    output.write(f"{MODEL}/{RECORD}", record.model_dump_json(indent=2).encode())


def _spread_images(dataset: TrainingImages) -> Iterator[Images]:
    """Yield batches of images that are evenly spread over the dataset."""
    places = spread_places(dataset, MAX_SCALING_IMAGES)
    for first in range(0, len(places), BATCH_SIZE):
        yield np.stack([dataset.image(*place) for place in places[first : first + BATCH_SIZE]])


def _finished_metrics(options: TrainVaeOptions, dataset: TrainingImages, output: Folder) -> dict[str, float] | None:
    """Return the metrics of the finished autoencoder if it has the same recipe and data, else None."""
    if not output.exists(f"{MODEL}/{RECORD}"):
        return None
    record = ModelRecord.model_validate(output.read_json(f"{MODEL}/{RECORD}"))
    return record.metrics if record.recipe == options.recipe() and record.data_digest == dataset.digest else None
