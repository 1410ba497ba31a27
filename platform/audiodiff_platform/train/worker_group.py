"""Training on Ray Train: the group of workers, restarts, and Ctrl-C.

Ray Train restarts a group after every failure, since a long run on spot nodes has any number of them. The workers
themselves end a training that fails again and again at one checkpoint (`training_starts.py`). The folder of Ray Train is
a temporary one on this node: `training_state.py` keeps the checkpoints.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError, ValidationConfig
from ray.train.torch import TorchTrainer

from audiodiff_platform.entry.errors import JobError, cause_of
from audiodiff_platform.train.options import RunOptions

RESIZE_SECONDS_AT_LEAST = 5.0
FAILURES_AT_MOST = (
    1_000  # of a run, however long, so that even workers that die before they count their start come to an end
)
RAY_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # for the workers' places, not their imports: where a node has just died, fewer workers are tried then
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}

Worker = Callable[[dict[str, Any]], str | None]


@dataclass(frozen=True)
class Group:
    """The workers of a training: how many, or (least, most), and whether they run on GPUs."""

    workers: int | tuple[int, int]
    gpu: bool

    @property
    def least(self) -> int:
        """The smallest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        """The largest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


def run_workers(
    worker: Worker,
    options: RunOptions,
    group: Group,
    validation: ValidationConfig | None = None,
    token: str | None = None,
) -> None:
    """Run `worker` in a group of processes until it returns, through failures and changes of the cluster.

    `token` names the lease of the run folder, which checkpoints compare.

    Raises:
        JobError: A worker returned a reason for which training cannot continue, or Ray Train gave up.
        KeyboardInterrupt: Ctrl-C; the workers are gone.
    """
    for name, value in RAY_TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A resize restarts the group from its last checkpoint.
    resize_seconds = max(RESIZE_SECONDS_AT_LEAST, options.checkpoint_minutes * 60)
    with tempfile.TemporaryDirectory(prefix="audiodiff-ray-train-", ignore_cleanup_errors=True) as folder:
        trainer = TorchTrainer(
            worker,
            train_loop_config={"options": options.model_dump(), "token": token},
            scaling_config=ScalingConfig(
                num_workers=group.workers, use_gpu=group.gpu, elastic_resize_monitor_interval_s=resize_seconds
            ),
            run_config=RunConfig(
                name="run",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=FAILURES_AT_MOST),
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
            validation_config=validation,
        )
        try:
            with _interruptible():
                reason = trainer.fit().return_value
        except TrainingFailedError as error:
            raise JobError(f"training failed: {_cause(error)}") from error
    if reason is not None:
        raise JobError(f"training failed: {reason}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ray Train's answer to Ctrl-C into KeyboardInterrupt.

    On the main thread, Ray Train handles SIGINT: it ends its workers wherever they run, then exits with status 0.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, previous)


def _cause(error: TrainingFailedError) -> str:
    """Return the error of the first worker in one line, or else that of Ray Train."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    return cause_of(next(iter(failures.values())))
