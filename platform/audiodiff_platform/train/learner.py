"""The interface between the training loop and what is trained."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from audiodiff_core.training import TrainBatch


class TrainingStoppedError(Exception):
    """Training cannot reach its stopping point, and another attempt would not either; the message says why, the same in all workers."""


class TrainingProgress(Protocol):
    """How far training has come: optimizer steps (the learner counts them), samples and seconds (the loop does)."""

    step: int
    samples: int
    seconds: float


class Learner(Protocol):
    """What is trained: a step, and what it saves."""

    @property
    def counts(self) -> TrainingProgress:
        """Counted on by the loop."""

    def ready(self, batch: TrainBatch) -> TrainBatch:
        """The batch with what can be made of it before its step; called by the thread that reads ahead."""

    def learn(self, micro_batches: Sequence[TrainBatch], progress: float) -> dict[str, float]:
        """One optimizer step on this worker's share at `progress` in [0, 1] -> what is logged: at least `loss`."""

    def snapshot(self) -> Callable[[Path], None]:
        """All workers: what rank 0 then writes into a folder."""

    def progress(self) -> dict[str, Any]:
        """JSON values, among them `step`, that `load` is given back."""

    def load(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """Makes this the learner that was saved."""
