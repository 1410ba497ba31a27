"""Worker group of a training run on Ray Train: start, restarts after failures, and Ctrl-C.

Ray Train restarts the group after every failure, because a long run on spot nodes may fail many times. The workers
themselves end a training run that fails repeatedly from the same checkpoint (`restarts.py`). The folder of Ray Train is
a temporary folder on this node. Checkpoints are stored in the run folder (`checkpoints.py`).
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

from audiodiff_platform.cluster import HIDDEN_GPUS
from audiodiff_platform.cluster.capacity import WorkerResources, wait_for_places
from audiodiff_platform.entry.errors import JobError, cause_of
from audiodiff_platform.train.run_options import RunOptions

MIN_RESIZE_INTERVAL_S = 5.0
MAX_FAILURES = 1_000  # per run; also ends a run whose workers die before they count their start
RAY_TRAIN_ENVIRONMENT = {
    # Timeout for the reservation of resources, not for the import of modules by the workers. After it, an elastic group
    # whose node has died tries fewer workers. A group of fixed size tries again, and waits for nodes in this way. A
    # longer wait gains nothing and harms: the controller of Ray Train neither answers Ctrl-C nor renews its request to
    # the autoscaler meanwhile, which expires after 180 s. The job waits for its first nodes itself.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}

Worker = Callable[[dict[str, Any]], str | None]


@dataclass(frozen=True)
class Group:
    """Size and device of the worker group.

    Args:
        workers: Number of workers, or (minimum, maximum) for a group that follows the size of the cluster.
        gpu: True if each worker uses a GPU.
        cpus: CPUs of each worker: one for itself, and one for each of its reading processes.
        accelerator_type: Kind of the GPUs as Ray names it. None for any kind.
    """

    workers: int | tuple[int, int]
    gpu: bool
    cpus: int = 1
    accelerator_type: str | None = None

    @property
    def each(self) -> WorkerResources:
        """The resources of each worker."""
        return WorkerResources(self.cpus, int(self.gpu), self.accelerator_type)

    @property
    def min_workers(self) -> int:
        """The smallest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The largest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


def run_workers(
    worker: Worker,
    options: RunOptions,
    group: Group,
    validation: ValidationConfig | None = None,
    token: str | None = None,
) -> None:
    """Run `worker` in a group of processes until it returns, and restart the group after failures.

    Args:
        worker: Function to run in each process. It returns the reason if training cannot continue, else None.
        options: Options of the run.
        group: Size and device of the group.
        validation: Validation of checkpoints, or None.
        token: Token of the lease of the run folder, or None if no lease is held.

    Raises:
        JobError: A worker returned a reason, or Ray Train gave up.
        KeyboardInterrupt: Ctrl-C was pressed. The workers have ended.
    """
    for name, value in RAY_TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    wait_for_places(group.min_workers, group.each)
    # A resize restarts the group from its last checkpoint, so it should not be more frequent than checkpoints.
    resize_interval_s = max(MIN_RESIZE_INTERVAL_S, options.checkpoint_minutes * 60)
    with tempfile.TemporaryDirectory(prefix="audiodiff-ray-train-", ignore_cleanup_errors=True) as folder:
        trainer = TorchTrainer(
            worker,
            train_loop_config={"options": options.model_dump(), "token": token},
            scaling_config=ScalingConfig(
                num_workers=group.workers,
                use_gpu=group.gpu,
                resources_per_worker=group.each.amounts,
                accelerator_type=group.accelerator_type,
                elastic_resize_monitor_interval_s=resize_interval_s,
            ),
            run_config=RunConfig(
                name="run",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                logging_config=LoggingConfig(log_level="WARNING"),
                worker_runtime_env={} if group.gpu else {"env_vars": HIDDEN_GPUS},
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
    """Raise KeyboardInterrupt when Ray Train exits because of Ctrl-C.

    On the main thread, Ray Train handles SIGINT: it ends the workers on all nodes, then exits with status 0.
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
    """Return the error of the first failed worker in one line, or the error of Ray Train."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    return cause_of(next(iter(failures.values())))
