"""Interface between the training loop and the networks that it trains."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from audiodiff_core.training import TrainBatch, TrainState
from audiodiff_core.training.vae_state import VaeTrainState
from audiodiff_platform.mel_data.run_folder import EMA_WEIGHTS
from audiodiff_platform.train.checkpoints import FileRecord
from audiodiff_platform.train.host_copy import HostCopy

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


class Snapshot(Protocol):
    """Copy of the state in host memory, which a thread writes to a checkpoint while training continues.

    Rank 0 calls `write`, again if the checkpoint cannot be written, and at last `finish`. Meanwhile, all other workers
    call `assist`.
    """

    def write(self, name: str, folder: Path) -> Mapping[str, FileRecord] | None:
        """Write the files of a checkpoint.

        Args:
            name: Name of the checkpoint in the run folder.
            folder: Local folder for the files.

        Returns:
            Records of files by name, for `checkpoints.put_checkpoint`.
        """

    def assist(self) -> None:
        """Write the part of this worker. Return when rank 0 has finished."""

    def finish(self) -> None:
        """Tell the other workers that nothing is left to write."""


class Learner(Protocol):
    """Networks in training, with their optimizer step and their state."""

    @property
    def counts(self) -> TrainingProgress:
        """The counts, which the loop updates in place."""

    def ready(self, batch: TrainBatch) -> TrainBatch:
        """Prepare a batch for its step, on the device. On a GPU, this runs on another stream than the step."""

    def learn(self, micro_batches: Sequence[TrainBatch], progress: float) -> dict[str, torch.Tensor | float]:
        """Take one optimizer step on the share of this worker, without waiting for the device.

        Args:
            micro_batches: One batch per forward pass.
            progress: Completed fraction of training, in [0, 1].

        Returns:
            The values to log by name, including `loss` and `gradient_norm`. Tensors are on the device.
        """

    def snapshot(self) -> Snapshot:
        """Copy the state to host memory, on all workers. The next call overwrites the copy."""

    def progress(self) -> dict[str, Any]:
        """Return the state as JSON values, including `step`, for `load`."""

    def load(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """Restore the state from the files of `snapshot` and the values of `progress`."""


class StateSnapshot:
    """Copy of a whole state, which rank 0 writes alone.

    A checkpoint holds network.safetensors (weights), ema.safetensors (averaged weights) and optimizer.pt (moments of
    the optimizer).

    Args:
        copy: The copy on rank 0, None on the other workers.
    """

    def __init__(self, copy: Mapping[str, Any] | None) -> None:
        self.copy = copy

    def write(self, name: str, folder: Path) -> None:
        """Write the files into the folder. See `Snapshot.write`."""
        assert self.copy is not None, f"only rank 0 writes {name}"
        save_file(self.copy["network"], folder / WEIGHTS)
        save_file(self.copy["average"], folder / EMA_WEIGHTS)
        torch.save(self.copy["optimizer"], folder / OPTIMIZER)

    def assist(self) -> None:
        """Do nothing. See `Snapshot.assist`."""

    def finish(self) -> None:
        """Do nothing. See `Snapshot.finish`."""


class StateLearner(Generic[StateT]):
    """The part of a learner that saves and restores its state. See `StateSnapshot` for the files of a checkpoint."""

    def __init__(self, accelerator: Accelerator, state: StateT) -> None:
        self.accelerator = accelerator
        self.state: StateT = state
        self._copy = HostCopy()

    @property
    def counts(self) -> StateT:
        """Counters of the state. See `Learner.counts`."""
        return self.state

    def snapshot(self) -> Snapshot:
        """Copy the state for a checkpoint. See `Learner.snapshot`."""
        network, average = self.state.state_dict(), self.state.ema_state_dict()
        optimizer = self.state.optimizer_state_dict()
        if not self.accelerator.is_main_process:
            return StateSnapshot(None)
        return StateSnapshot(self._copy.take({"network": network, "average": average, "optimizer": optimizer}))

    def progress(self) -> dict[str, Any]:
        """Return the progress of the state. See `Learner.progress`."""
        return self.state.progress()

    def load(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """Load the state of a checkpoint. See `Learner.load`."""
        self.state.load_state_dict(load_file(folder / WEIGHTS))
        self.state.load_ema_state_dict(load_file(folder / EMA_WEIGHTS))
        self.state.load_optimizer_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))
        self.state.load_progress(dict(progress))
