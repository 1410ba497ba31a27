"""Runs a training on Ray Train: which numbers of workers it may have, when it starts again, and when it is given up.

Ray Train decides both from counts of its own, so two of its policies are given rules more: an elastic group takes only numbers of
workers that divide the batch and the streams of the data order; failures count only since the last new checkpoint, and a validation
that dies is none: its checkpoint has no result, as where validation raises an error. Its own folder
holds nothing that is needed later (`training_state.py` says where checkpoints are), so it is a temporary one on this node.
"""

import math
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError
from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError, ValidationConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision

from audiodiff_platform.cluster import ends_with_this_process, say
from audiodiff_platform.job import JobError, cause_of
from audiodiff_platform.storage import Folder
from audiodiff_platform.train_options import RunOptions
from audiodiff_platform.training_state import end_dead_validation, newest_checkpoint

FAILURES_SURVIVED = 3  # without a new checkpoint between them; nodes that are taken away with notice do not count
RESIZE_LOOK_S = 5.0
RAY_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # for the workers' places, not their imports: where a node has just died, fewer workers are tried then
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}

Worker = Callable[[dict[str, Any]], str | None]


@dataclass(frozen=True)
class Group:
    """Workers of a training: how many, or (least, most), and whether on GPUs."""

    workers: int | tuple[int, int]
    gpu: bool

    @property
    def least(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]


def run_workers(worker: Worker, options: RunOptions, group: Group, validation: ValidationConfig | None = None) -> None:
    """Runs `worker` in a group of processes until it is done, through failures and changes of the cluster.

    Raises JobError with what a worker returned or died of. Ctrl-C stays a KeyboardInterrupt, since `fit` is not on the main thread.
    """
    for name, value in RAY_TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory(prefix="audiodiff-ray-train-", ignore_cleanup_errors=True) as folder:
        trainer = _Trainer(
            worker,
            train_loop_config={"options": options.model_dump()},
            scaling_config=ScalingConfig(num_workers=group.workers, use_gpu=group.gpu, elastic_resize_monitor_interval_s=RESIZE_LOOK_S),
            run_config=RunConfig(
                name="run",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=FAILURES_SURVIVED),
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
            validation_config=validation,
        )
        trainer.options = options
        outcome: list[Any] = []

        def fit() -> None:
            try:
                outcome.append(trainer.fit())
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=fit, name="train", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(timeout=1)
    if isinstance(outcome[0], TrainingFailedError):
        raise JobError(_cause(outcome[0])) from outcome[0]
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    if outcome[0].return_value is not None:
        raise JobError(f"training failed: {outcome[0].return_value}")


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train with this module's rules."""

    options: RunOptions

    def _create_default_callbacks(self) -> Any:
        """Without the actor that frees what a dead job held, where Ray ends with the job: it would complain each second that a dashboard is lacking."""
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not (ends_with_this_process() and isinstance(callback, PlacementGroupCleanerCallback))]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        parts["failure_policy"] = FailuresSinceCheckpoint(self.run_config.failure_config, self.options.output_dir)
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = DividingWorkers(self.scaling_config, self.options)
        result = super()._initialize_and_run_controller(**parts)
        if _validation_died(result.error):  # what is left to do when the workers have finished is validation
            say(f"validation of a checkpoint died ({cause_of(result.error.controller_failure)}) when training had ended")
            _end_dead_validation(self.options.output_dir)
            result.error = None
        return result


class DividingWorkers(ElasticScalingPolicy):  # type: ignore[misc]
    """An elastic group of the most workers that the cluster has room for, of the numbers that share the work evenly.

    A running group is resized, which restarts it, only just after it has written a checkpoint: little is then done again.
    """

    def __init__(self, scaling_config: ScalingConfig, options: RunOptions) -> None:
        super().__init__(scaling_config)
        self.usable = options.usable_workers(scaling_config.min_workers, scaling_config.max_workers)
        self.output_dir = options.output_dir
        self.checkpoint: str | None = None
        self.looked_at = -math.inf

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((number for number in self.usable if number <= possible), default=0)

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        if time.monotonic() - self.looked_at < RESIZE_LOOK_S:
            return NoopDecision()
        self.looked_at = time.monotonic()
        checkpoint = _newest(self.output_dir, self.checkpoint)
        if checkpoint == self.checkpoint:
            self._maybe_send_resource_request()
            return NoopDecision()
        self.checkpoint = checkpoint
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)


class FailuresSinceCheckpoint(DefaultFailurePolicy):  # type: ignore[misc]
    """Gives up after failures in a row without a new checkpoint, however many a long run has had."""

    def __init__(self, failure_config: FailureConfig, output_dir: str) -> None:
        super().__init__(failure_config)
        self.output_dir = output_dir
        self.checkpoint: str | None = None

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if _validation_died(training_failed_error):
            _end_dead_validation(self.output_dir)
            say(f"validation of a checkpoint died ({cause_of(training_failed_error.controller_failure)}): training goes on")
            return FailureDecision.NOOP
        checkpoint = _newest(self.output_dir, self.checkpoint)
        if checkpoint != self.checkpoint:
            self.checkpoint = checkpoint
            self._worker_group_failures = 0
        return super().make_decision(training_failed_error)


def _newest(output_dir: str, known: str | None) -> str | None:
    """The newest checkpoint, or the one known of where the store is out of reach."""
    try:
        return newest_checkpoint(Folder(output_dir))
    except OSError:
        return known


def _end_dead_validation(output_dir: str) -> None:
    try:
        end_dead_validation(Folder(output_dir))
    except OSError as error:
        say(f"validation: no checkpoint is validated from here on before training has ended ({error})")


def _validation_died(error: Exception | None) -> bool:
    """Whether Ray Train's controller met the death of a task, not of a worker, which is an actor: validations are the only tasks that it runs."""
    return isinstance(error, ControllerError) and isinstance(error.controller_failure, (WorkerCrashedError, OutOfMemoryError, NodeDiedError))


def _cause(error: TrainingFailedError) -> str:
    """The line that says why training failed: the first worker's own error where there is one."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    first = next(iter(failures.values()))
    return f"training failed: {cause_of(first)}"
