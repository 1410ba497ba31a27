"""Interface between the training loop and the networks that it trains."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from audiodiff_core.training import TrainBatch


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

    def learn(self, micro_batches: Sequence[TrainBatch], progress: float) -> dict[str, float]:
        """Take one optimizer step on the share of this worker.

        Args:
            micro_batches: One batch per forward pass.
            progress: Completed fraction of training, in [0, 1].

        Returns:
            The values to log by name, including `loss`.
        """

    def snapshot(self) -> Callable[[Path], None]:
        """Copy the state, on all workers, and return the function with which rank 0 writes it into a folder."""

    def progress(self) -> dict[str, Any]:
        """Return the state as JSON values, including `step`, for `load`."""

    def load(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """Restore the state from the files of `snapshot` and the values of `progress`."""
