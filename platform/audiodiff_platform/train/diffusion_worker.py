"""Worker of diffusion training: the function that each process runs, and the learner."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from audiodiff_core.training import TrainBatch, TrainState, learning_rate, train_step, with_draws
from audiodiff_core.training.cost import training_cost
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.inputs import TrainingInputs, load_training_inputs, open_order
from audiodiff_platform.train.learner import Snapshot, StateLearner
from audiodiff_platform.train.loop import learn
from audiodiff_platform.train.options import TrainOptions
from audiodiff_platform.train.sharded_checkpoints import ShardSnapshot, ShardWriters, has_shards, load_shards
from audiodiff_platform.train.validation.diffusion import validates
from audiodiff_platform.train.validation.in_group import diffusion_validation
from audiodiff_platform.train.worker_process import run_worker, samples_per_pass


def train_worker(config: dict[str, Any]) -> str | None:
    """Train to the stopping point, from the newest checkpoint or from step 0, and write a checkpoint.

    Args:
        config: `options` as a dictionary, and `token` of the lease of the run folder.

    Returns:
        The reason if training cannot continue, else None.
    """
    options = TrainOptions.model_validate(config["options"])

    def train(accelerator: Accelerator) -> None:
        trained(options, accelerator, load_training_inputs(options), config["token"])

    return run_worker(options, train, options.fsdp)


def trained(
    options: TrainOptions, accelerator: Accelerator, inputs: TrainingInputs, token: str | None = None
) -> TrainState:
    """Train to the stopping point and return the state.

    Args:
        options: Options of the run.
        accelerator: Accelerator of this worker.
        inputs: Network, objective and data.
        token: Token of the lease of the run folder, or None if no lease is held.

    Raises:
        FloatingPointError: Too many successive steps had no finite gradient.
        TrainingStoppedError: A checkpoint cannot be written.
    """
    state = TrainState(
        accelerator,
        inputs.network,
        inputs.objective,
        options.learning_rate,
        options.seed,
        vae=inputs.vae,
        encoding_parts=() if inputs.conditions is None else inputs.conditions.sizes,
        optimizer=options.optimizer,
        ema_decay=options.ema_decay,
        max_gradient_norm=options.max_gradient_norm,
        gradient_checkpointing=options.gradient_checkpointing,
        compiled=options.torch_compile,
    )
    validated = validates(options, inputs.dataset)
    in_group = options.validate_in == "group"
    learn(
        options,
        accelerator,
        DiffusionLearner(options, accelerator, state),
        inputs.order(options.seed),
        open_order=partial(open_order, options) if options.data_workers else None,
        validates=validated and not in_group,
        validation=diffusion_validation(options, accelerator, inputs, state) if validated and in_group else None,
        token=token,
    )
    return state


def worker_memory(network: Any, vae: Any, options: TrainOptions, workers: int, samples: int) -> int:
    """Estimate the bytes of a worker.

    Args:
        network: A diffusers network on any device, including meta.
        vae: The frozen autoencoder of a latent network, or None.
        options: Options of the run, with the precision.
        workers: Number of workers, over which FSDP shards the state.
        samples: Samples of a micro-batch.
    """
    cost = training_cost(
        network,
        samples,
        optimizer=options.optimizer,
        gradient_checkpointing=options.gradient_checkpointing,
        precision=options.autocast,
        vae=vae,
    )
    return cost.state_bytes // (workers if options.fsdp else 1) + cost.frozen_bytes + cost.activation_bytes


class DiffusionLearner(StateLearner[TrainState]):
    """Learner of a diffusion network.

    An FSDP run writes sharded checkpoints. Every run reads sharded and whole checkpoints.
    """

    def __init__(self, options: TrainOptions, accelerator: Accelerator, state: TrainState) -> None:
        super().__init__(accelerator, state)
        self.options = options
        memory_bytes = partial(worker_memory, state.bare, state.vae, options, accelerator.num_processes)
        self.samples_per_pass = samples_per_pass(options, accelerator, memory_bytes, options.fsdp)
        self._writers = ShardWriters(Folder(options.output_dir)) if state.sharded else None

    def ready(self, batch: TrainBatch) -> TrainBatch:
        return with_draws(self.state, batch)

    def learn(self, micro_batches: Sequence[TrainBatch], progress: float) -> dict[str, torch.Tensor | float]:
        options = self.options
        rate = learning_rate(
            options.learning_rate, self.state.step, options.lr_warmup_steps, progress, options.lr_scheduler
        )
        loss, norm = train_step(
            self.accelerator,
            self.state,
            [part for batch in micro_batches for part in batch.split(self.samples_per_pass)],
            rate,
            options.samples_per_worker(self.accelerator.num_processes),
        )
        return {"loss": loss, "gradient_norm": norm, "learning_rate": rate}

    def snapshot(self) -> Snapshot:
        if self._writers is None:
            return super().snapshot()
        return ShardSnapshot(self._writers, self._copy.take(self.state.tensors()))

    def load(self, folder: Path, progress: Mapping[str, Any]) -> None:
        if not has_shards(folder):
            super().load(folder, progress)
            return
        load_shards(self.state, folder)
        self.state.load_progress(dict(progress))
