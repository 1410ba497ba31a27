"""What each process of a diffusion training does; Ray Train has joined them to one process group, accelerate synchronises gradients."""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from audiodiff_core.checkpoint import ModelRecord, save_model, upload_model
from audiodiff_core.models import build_unet
from audiodiff_core.training import TrainBatch, TrainState, learning_rate, train_step
from audiodiff_platform.data_order import DataOrder
from audiodiff_platform.dataset import TrainingImages
from audiodiff_platform.imported import open_dataset
from audiodiff_platform.train_options import RunOptions, TrainOptions
from audiodiff_platform.training_loop import TrainingStoppedError, learn


def train_worker(config: dict[str, Any]) -> str | None:
    """Trains from the last checkpoint (or the start) to the stopping point, then writes the model.

    Gives the reason where training cannot get there from its data and options: Ray Train would answer an error with another attempt.
    """
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # or each request to the Hub would be a line of progress
    options = TrainOptions.model_validate(config["options"])
    accelerator = join_workers(options)
    dataset = open_dataset(options.dataset_name, options.mel_config)
    try:
        state, last = trained(options, accelerator, dataset)
    except (FloatingPointError, TrainingStoppedError) as reason:
        return str(reason)
    if accelerator.is_main_process:
        write_model(options, state, dataset, last)
    accelerator.wait_for_everyone()
    return None


def join_workers(options: RunOptions) -> Accelerator:
    """This process's accelerate, joined to the process group that Ray Train made."""
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        torch.set_num_threads(1)
    # Without cpu=True, accelerate passes over Ray's gloo group and each worker would train alone.
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=options.mixed_precision)
    world = ray.train.get_context().get_world_size()
    assert accelerator.num_processes == world, f"accelerate sees {accelerator.num_processes} of {world} workers"
    return accelerator


def trained(options: TrainOptions, accelerator: Accelerator, dataset: TrainingImages) -> tuple[TrainState, dict[str, float]]:
    """The state at the stopping point and the last metrics."""
    torch.manual_seed(options.seed)
    network = build_unet(options.preset, dataset.mel)
    state = TrainState(accelerator, network, options.objective().scheduler("ddpm"), options.learning_rate, options.seed)
    return state, learn(options, accelerator, DiffusionLearner(options, accelerator, state), DataOrder(dataset, options.seed))


class DiffusionLearner:
    """A diffusion network as the loop's learner.

    Saves network.safetensors (live weights), ema.safetensors (averaged weights) and optimizer.pt (AdamW's moments).
    """

    def __init__(self, options: TrainOptions, accelerator: Accelerator, state: TrainState) -> None:
        self.options, self.accelerator, self.state = options, accelerator, state

    @property
    def counts(self) -> TrainState:
        return self.state

    def learn(self, micro_batches: Sequence[TrainBatch], progress: float) -> dict[str, float]:
        rate = learning_rate(self.options.learning_rate, self.state.step, self.options.lr_warmup_steps, progress)
        loss, norm = train_step(self.accelerator, self.state, micro_batches, rate)
        return {"loss": loss, "gradient_norm": norm, "learning_rate": rate}

    def snapshot(self) -> Callable[[Path], None]:
        return partial(_save, self.state)

    def progress(self) -> dict[str, Any]:
        return self.state.progress()

    def load(self, folder: Path, progress: Mapping[str, Any]) -> None:
        state = self.state
        state.bare.load_state_dict(load_file(folder / "network.safetensors"))
        state.load_ema_state_dict(load_file(folder / "ema.safetensors"))
        state.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        state.load_progress(dict(progress))


def _save(state: TrainState, folder: Path) -> None:
    save_file(_contiguous(state.bare.state_dict()), folder / "network.safetensors")
    save_file(_contiguous(state.ema_state_dict()), folder / "ema.safetensors")
    torch.save(state.optimizer.state_dict(), folder / "optimizer.pt")


def _contiguous(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def write_model(options: TrainOptions, state: TrainState, dataset: TrainingImages, metrics: dict[str, float]) -> None:
    """Saves the averaged weights as a model folder in the run folder."""
    unet = build_unet(options.preset, dataset.mel)
    unet.load_state_dict(state.ema_state_dict())
    record = ModelRecord(
        recipe=options.recipe(),
        data_digest=dataset.digest,
        metrics={"steps": state.step, "samples": state.samples, "seconds": round(state.seconds, 1), **metrics},
    )
    with model_folder(options.output_dir) as folder:
        save_model(folder, unet, options.objective().scheduler(options.scheduler), dataset.mel, record)


@contextmanager
def model_folder(output_dir: str) -> Iterator[Path]:
    """OUTPUT_DIR/model, or for an object store a local folder that is then uploaded to it."""
    if "://" not in output_dir:
        yield Path(output_dir) / "model"
        return
    with tempfile.TemporaryDirectory(prefix="audiodiff-") as scratch:
        yield Path(scratch) / "model"
        upload_model(Path(scratch) / "model", f"{output_dir}/model")
