"""Interface between the training loop and the networks that it trains."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file

from audiodiff_core.training import TrainBatch, TrainState
from audiodiff_core.training.vae_state import VaeTrainState
from audiodiff_platform.mel_data.run_folder import EMA_WEIGHTS

WEIGHTS = "network.safetensors"
OPTIMIZER = "optimizer.pt"

StateT = TypeVar("StateT", bound=TrainState | VaeTrainState)


class TrainingStoppedError(Exception):
    """Failure that another attempt would repeat, so training ends before its stopping point.

    The message states the reason and is the same on all workers.
    """


class TrainingProgress(Protocol):
    """Counts of a training run.

    The learner counts optimizer steps. The loop counts samples and seconds.
    """

    step: int
    samples: int
    seconds: float


class Learner(Protocol):
    """Networks in training, with their optimizer step and their state."""

    @property
    def counts(self) -> TrainingProgress:
        """The counts, which the loop updates in place."""

    def ready(self, batch: TrainBatch) -> TrainBatch:
        """Prepare a batch for its step. The thread that reads ahead calls this method."""

    def learn(self, micro_batches: Sequence[TrainBatch], progress: float) -> dict[str, torch.Tensor | float]:
        """Take one optimizer step on the share of this worker.

        Args:
            micro_batches: One batch per forward pass.
            progress: Completed fraction of training, in [0, 1].

        Returns:
            The values to log by name, including `loss`: floats, or tensors of shape () on the device.
        """

    def snapshot(self) -> Callable[[Path], None]:
        """Copy the state, on all workers, and return the function with which rank 0 writes it into a folder."""

    def progress(self) -> dict[str, Any]:
        """Return the state as JSON values, including `step`, for `load`."""

    def load(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """Restore the state from the files of `snapshot` and the values of `progress`."""


class StateLearner(Generic[StateT]):
    """The part of a learner that saves and restores its state.

    A checkpoint holds network.safetensors (weights), ema.safetensors (averaged weights) and optimizer.pt (moments of
    the optimizer).
    """

    def __init__(self, state: StateT) -> None:
        self.state: StateT = state

    @property
    def counts(self) -> StateT:
        """Counters of the state. See `Learner.counts`."""
        return self.state

    def snapshot(self) -> Callable[[Path], None]:
        """Copy the state for a checkpoint. See `Learner.snapshot`."""
        return partial(_save, self.state.state_dict(), self.state.ema_state_dict(), self.state.optimizer_state_dict())

    def progress(self) -> dict[str, Any]:
        """Return the progress of the state. See `Learner.progress`."""
        return self.state.progress()

    def load(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """Load the state of a checkpoint. See `Learner.load`."""
        self.state.load_state_dict(load_file(folder / WEIGHTS))
        self.state.load_ema_state_dict(load_file(folder / EMA_WEIGHTS))
        self.state.load_optimizer_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))
        self.state.load_progress(dict(progress))


def _save(
    network: Mapping[str, torch.Tensor], average: Mapping[str, torch.Tensor], optimizer: Mapping[str, Any], folder: Path
) -> None:
    """Write the files of a checkpoint into a local folder."""
    save_file(_contiguous(network), folder / WEIGHTS)
    save_file(_contiguous(average), folder / EMA_WEIGHTS)
    torch.save(optimizer, folder / OPTIMIZER)


def _contiguous(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in weights.items()}
