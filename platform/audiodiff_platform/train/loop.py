"""Training loop, which runs in each worker: batches, optimizer steps, log and checkpoints.

1. All workers load the newest intact checkpoint, or start from step 0. Validations that were queued but never started
   are requested again.
2. In each step, the workers process their shares of the next samples in the data order. A thread reads the samples
   ahead.
3. The clock of rank 0 determines when to write a checkpoint, when to check for preempted nodes, and when to stop.
"""

import itertools
import math
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import ray.train
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, reduce
from safetensors import SafetensorError

from audiodiff_platform.entry.errors import LeaseLostError
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.sample_order import DataOrder
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.lease import require_token
from audiodiff_platform.train.batches import Share, read_ahead
from audiodiff_platform.train.checkpoints import (
    checkpoint_name,
    local_checkpoint,
    newest_intact_checkpoint,
    put_checkpoint,
    remove_superseded,
    step_of,
)
from audiodiff_platform.train.learner import Learner, TrainingStoppedError
from audiodiff_platform.train.run_log import RunLog
from audiodiff_platform.train.run_options import RunOptions
from audiodiff_platform.train.validation_marks import in_validation, queue_for_validation, validations_not_started

LOG_STEPS = 10
PREEMPTION_INTERVAL_S = 2.0
RETRY_PAUSES_S = (1.0, 4.0, 16.0)  # between attempts to write a checkpoint


def learn(
    options: RunOptions,
    accelerator: Accelerator,
    learner: Learner,
    order: DataOrder,
    *,
    validates: bool = False,
    token: str | None = None,
) -> dict[str, float]:
    """Train to the stopping point.

    Args:
        options: Options of the run.
        accelerator: Accelerator of this worker.
        learner: Networks to train.
        order: Data order of the dataset.
        validates: If True, request the validation of a checkpoint if no other checkpoint is in validation, and always
            request the validation of the last checkpoint.
        token: Token of the lease of the run folder, without which no checkpoint is written. None if no lease is held.

    Returns:
        The values of the last log line by name.

    Raises:
        TrainingStoppedError: A checkpoint cannot be written.
    """
    return _Loop(options, accelerator, learner, order, validates=validates, token=token).run()


class _Loop:
    def __init__(
        self,
        options: RunOptions,
        accelerator: Accelerator,
        learner: Learner,
        order: DataOrder,
        *,
        validates: bool,
        token: str | None,
    ) -> None:
        self.options, self.accelerator, self.learner, self.order, self.validates = (
            options,
            accelerator,
            learner,
            order,
            validates,
        )
        self.output = Folder(options.output_dir)
        self.attempt = uuid.uuid4().hex[:8]
        self.token = token
        self.since_logged: dict[str, list[float]] = {}
        self.not_validated: list[str] = []  # queued by workers that have died, and not started
        reported = self._load()
        self.log = RunLog(options, learner.counts.step, reported, accelerator.is_main_process)
        self.earlier_seconds, self.began = learner.counts.seconds, time.monotonic()
        self.saved_at = self.checked_at = self.began
        self.saved_step = learner.counts.step
        self.preempted: frozenset[str] = frozenset()
        self.queued: str | None = None

    def run(self) -> dict[str, float]:
        options, learner, counts = self.options, self.learner, self.learner.counts
        max_steps = options.step_limit(self.order.dataset.rows)
        max_seconds = None if options.max_train_minutes is None else options.max_train_minutes * 60
        first_progress: float | None = None
        share = Share(options.batch_size, self.accelerator.process_index, self.accelerator.num_processes)
        batches = read_ahead(self.order, counts.samples, share, learner.ready)
        with closing(batches), closing(self.log):
            for name in self.not_validated:
                self._report(name, validate=True)
            while True:
                due = self._agree()
                progress = max(
                    0.0 if max_steps is None else counts.step / max(1, max_steps),
                    0.0 if max_seconds is None else counts.seconds / max_seconds,
                )
                first_progress = progress if first_progress is None else first_progress
                finished = progress >= 1 or max_steps == 0
                if finished or due:
                    self._checkpoint(finished)
                if finished:
                    return self.log.last
                micro_batches = list(itertools.islice(batches, options.gradient_accumulation_steps))
                for name, value in learner.learn(micro_batches, progress).items():
                    self.since_logged.setdefault(name, []).append(value)
                counts.samples += options.batch_size * options.gradient_accumulation_steps
                if counts.step % LOG_STEPS == 0:
                    means = {
                        name: statistics.fmean(_finite(values) or [0.0])
                        for name, values in self._worker_means().items()
                    }
                    self.since_logged = {}
                    elapsed = time.monotonic() - self.began
                    advance = progress - first_progress
                    left = elapsed * (1 - progress) / advance if advance > 0 else None
                    self.log.add(counts, means, progress, left)

    def _load(self) -> dict[str, list[int]]:
        """Restore the learner from the newest intact checkpoint, if any.

        Returns:
            The validated steps whose results each tracker has received.
        """
        start: list[Any] = [None, []]
        if self.accelerator.is_main_process:
            start = [
                newest_intact_checkpoint(self.output),
                validations_not_started(self.output) if self.validates else [],
            ]
        self.loaded, self.not_validated = broadcast_object_list(start)
        if self.loaded is None:
            return {}
        with local_checkpoint(self.output, self.loaded) as (folder, progress):
            self.learner.load(folder, progress)
        self.since_logged = {name: list(values) for name, values in progress["since_logged"].items()}
        return dict(progress["validations_told"])

    def _agree(self) -> bool:
        """Set the seconds of all workers to the clock of rank 0, and return True if a checkpoint is due.

        Rank 0 decides for all workers. Otherwise one worker could stop while another waits for its gradient.
        """
        now = time.monotonic()
        learned = self.learner.counts.step > self.saved_step and not self.since_logged
        due = learned and now - self.saved_at > self.options.checkpoint_minutes * 60
        check = now - self.checked_at > PREEMPTION_INTERVAL_S
        values = [self.earlier_seconds + now - self.began, float(due), float(check)]
        seconds, due_by_clock, check_nodes = broadcast(
            torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        ).tolist()
        self.learner.counts.seconds = seconds
        if not check_nodes:
            return bool(due_by_clock)
        self.checked_at = now
        preemption = ray.train.get_preemption_info()
        preempted = frozenset(() if preemption is None else preemption.preempted_node_ids)
        newly_preempted = preempted - self.preempted
        self.preempted = preempted
        if newly_preempted and self.accelerator.is_main_process:
            say(
                f"step {self.learner.counts.step}: {len(newly_preempted)} node(s) of this run will be preempted: "
                "writing a checkpoint"
            )
        return bool(due_by_clock or newly_preempted)

    def _worker_means(self) -> dict[str, list[float]]:
        """Return the mean over the workers of each value since the last log line, as one number per step."""
        if not self.since_logged:
            return {}
        own = torch.tensor(
            list(itertools.chain(*self.since_logged.values())), dtype=torch.float64, device=self.accelerator.device
        )
        values = iter(reduce(own, reduction="mean").tolist())
        return {name: list(itertools.islice(values, len(steps))) for name, steps in self.since_logged.items()}

    def _checkpoint(self, finished: bool) -> None:
        """Write a checkpoint and report it to Ray Train, on all workers together.

        Raises:
            TrainingStoppedError: The checkpoint cannot be written.
        """
        self.since_logged = self._worker_means()
        save = self.learner.snapshot()
        if self.loaded is not None and step_of(self.loaded) == self.learner.counts.step:
            name = self.loaded
        else:
            name = checkpoint_name(self.learner.counts.step, self.attempt)
        (failure,) = broadcast_object_list(
            [self._write(name, save, finished) if self.accelerator.is_main_process else None]
        )
        if failure is not None:
            raise TrainingStoppedError(failure)
        self.saved_at, self.saved_step = time.monotonic(), self.learner.counts.step
        self._report(name, validate=self.queued == name)

    def _report(self, name: str, validate: bool) -> None:
        """Report a checkpoint to Ray Train and request its validation if `validate`, on all workers together."""
        metrics = {"step": self.learner.counts.step, "samples": self.learner.counts.samples}
        if not self.accelerator.is_main_process:
            ray.train.report(metrics)
            return
        # Ray Train accepts only checkpoints in its own folder. This path is never read or written.
        storage = ray.train.get_context().get_storage()
        pointer = ray.train.Checkpoint(f"{storage.experiment_fs_path}/{Path(name).name}", storage.storage_filesystem)
        validation: Any = ray.train.ValidationTaskConfig(fn_kwargs={"name": name}) if validate else False
        ray.train.report(
            metrics, checkpoint=pointer, checkpoint_upload_fn=lambda checkpoint, _: checkpoint, validation=validation
        )

    def _write(self, name: str, save: Callable[[Path], None], finished: bool) -> str | None:
        """Write the log and a checkpoint on rank 0, and queue the checkpoint for validation.

        The checkpoint is queued if no other checkpoint is in validation, or if training has finished. A failed write is
        retried, since the disk may be full or the store unreachable only for a while.

        Returns:
            The reason if the checkpoint cannot be written, else None.
        """
        progress = {
            **self.learner.progress(),
            "workers": self.accelerator.num_processes,
            "device": _device_name(self.accelerator),
            "since_logged": self.since_logged,
            "logged": self.log.last,
        }
        for pause in (*RETRY_PAUSES_S, None):
            try:
                if self.token is not None:
                    require_token(self.output, self.token)
                self.log.flush()
                self.log.report_validations()
                reported = {tracker: sorted(steps) for tracker, steps in self.log.reported.items()}
                put_checkpoint(self.output, name, save, {**progress, "validations_told": reported})
                if self.validates and name not in self.not_validated and (finished or not in_validation(self.output)):
                    queue_for_validation(self.output, name)
                    self.queued = name
                remove_superseded(self.output, self.options.checkpoints_kept, self.options.best_metric)
            except LeaseLostError as error:
                return str(error)
            except (OSError, RuntimeError, SafetensorError) as error:
                # torch reports a failed write as RuntimeError, safetensors as SafetensorError.
                failure = f"checkpoint {self.output.uri}/{name} cannot be written ({' '.join(str(error).split())})"
                if pause is None:
                    return (
                        f"{failure}: fix this, then run the same command again to resume from the previous checkpoint"
                    )
                say(f"{failure}: retrying in {pause:.0f} s")
                time.sleep(pause)
            else:
                break
        return None


def _device_name(accelerator: Accelerator) -> str:
    return (
        torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else accelerator.device.type
    )


def _finite(values: Sequence[float]) -> list[float]:
    """Return the finite values. With fp16, some gradient norms are infinite or NaN."""
    return [value for value in values if math.isfinite(value)]
