"""What each process of a diffusion training does; Ray Train has joined them to one process group, accelerate synchronises gradients."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file

from audiodiff_core.training import TrainBatch, TrainState, learning_rate, sharding, train_step, with_draws
from audiodiff_platform.starting_point import StartingPoint, starting_point
from audiodiff_platform.storage import Folder
from audiodiff_platform.train_options import RunOptions, TrainOptions
from audiodiff_platform.training_loop import TrainingStoppedError, learn
from audiodiff_platform.training_starts import STARTS, count_start, record_error
from audiodiff_platform.training_state import EMA_WEIGHTS
from audiodiff_platform.validation import validates


def train_worker(config: dict[str, Any]) -> str | None:
    """Train from the last checkpoint (or the start) to the stopping point, and leave a checkpoint of it.

    Returns:
        The reason for which training cannot continue, or None.
    """
    options = TrainOptions.model_validate(config["options"])

    def train(accelerator: Accelerator) -> None:
        trained(options, accelerator, starting_point(options), config["token"])

    return run_worker(options, train, options.fsdp)


def run_worker(options: RunOptions, train: Callable[[Accelerator], None], fsdp: bool = False) -> str | None:
    """Run `train` in this process, joined to the others -> the reason for which training cannot continue, or None.

    Ray Train answers an error with a restart of the group, and the restart that `count_start` refuses ends the training.
    """
    output = Folder(options.output_dir)
    accelerator = join_workers(options, fsdp)
    try:
        (reason,) = broadcast_object_list([_counted(output, accelerator)])
        if reason is not None:
            return str(reason)
        train(accelerator)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            output.remove(STARTS)
    except (FloatingPointError, TrainingStoppedError) as reason:
        return str(reason)
    except Exception as error:
        record_error(output, error)
        raise
    return None


def _counted(output: Folder, accelerator: Accelerator) -> str | None:
    """Count this start, on rank 0 -> the reason to end the training: too many starts, or a run folder out of reach."""
    if not accelerator.is_main_process:
        return None
    try:
        return count_start(output, accelerator.num_processes)
    except OSError as error:
        return f"the run folder is out of reach ({error})"


def join_workers(options: RunOptions, fsdp: bool = False) -> Accelerator:
    """This process's accelerate, joined to the process group that Ray Train made."""
    for name in ("httpx2", "ray.train"):  # or each request to the Hub, and each report to Ray Train, would be a line of progress
        logging.getLogger(name).setLevel(logging.WARNING)
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        torch.set_num_threads(1)
    # Without cpu=True, accelerate passes over Ray's gloo group and each worker would train alone.
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=options.mixed_precision, fsdp_plugin=sharding() if fsdp else None)
    world = ray.train.get_context().get_world_size()
    assert accelerator.num_processes == world, f"accelerate sees {accelerator.num_processes} of {world} workers"
    assert world in options.usable_workers(1, world), f"{world} workers cannot share batches of {options.train_batch_size}"
    return accelerator


def trained(options: TrainOptions, accelerator: Accelerator, start: StartingPoint, token: str | None = None) -> TrainState:
    """The state at the stopping point."""
    state = TrainState(
        accelerator,
        start.network,
        start.objective,
        options.learning_rate,
        options.seed,
        vae=start.vae,
        optimizer=options.optimizer,
        ema_decay=options.ema_decay,
        max_gradient_norm=options.max_gradient_norm,
        gradient_checkpointing=options.gradient_checkpointing,
        compiled=options.torch_compile,
    )
    validated = validates(options, start.dataset)
    learn(options, accelerator, DiffusionLearner(options, accelerator, state), start.order(options.seed), validates=validated, token=token)
    return state


class DiffusionLearner:
    """A diffusion network as the loop's learner.

    Saves network.safetensors (live weights), ema.safetensors (averaged weights) and optimizer.pt (the optimizer's moments).
    """

    def __init__(self, options: TrainOptions, accelerator: Accelerator, state: TrainState) -> None:
        self.options, self.accelerator, self.state = options, accelerator, state

    @property
    def counts(self) -> TrainState:
        return self.state

    def ready(self, batch: TrainBatch) -> TrainBatch:
        return with_draws(self.state, batch)

    def learn(self, micro_batches: Sequence[TrainBatch], progress: float) -> dict[str, float]:
        options = self.options
        rate = learning_rate(options.learning_rate, self.state.step, options.lr_warmup_steps, progress, options.lr_scheduler)
        loss, norm = train_step(self.accelerator, self.state, micro_batches, rate, options.samples_per_worker(self.accelerator.num_processes))
        return {"loss": loss, "gradient_norm": norm, "learning_rate": rate}

    def snapshot(self) -> Callable[[Path], None]:
        return partial(save_weights, self.state.state_dict(), self.state.ema_state_dict(), self.state.optimizer_state_dict())

    def progress(self) -> dict[str, Any]:
        return self.state.progress()

    def load(self, folder: Path, progress: Mapping[str, Any]) -> None:
        self.state.load_state_dict(load_file(folder / "network.safetensors"))
        self.state.load_ema_state_dict(load_file(folder / EMA_WEIGHTS))
        self.state.load_optimizer_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        self.state.load_progress(dict(progress))


def save_weights(network: Mapping[str, torch.Tensor], average: Mapping[str, torch.Tensor], optimizer: Mapping[str, Any], folder: Path) -> None:
    """Writes a learner's files."""
    save_file(_contiguous(network), folder / "network.safetensors")
    save_file(_contiguous(average), folder / EMA_WEIGHTS)
    torch.save(optimizer, folder / "optimizer.pt")


def _contiguous(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in weights.items()}
