"""Training loop, which runs in each worker: batches, optimizer steps, log and checkpoints.

1. All workers load the newest intact checkpoint, or start from step 0. Validations that were queued but never started
   are requested again.
2. In each step, the workers process their shares of the next samples in the data order. Losses and gradient norms stay
   on the device until they are logged.
3. Every few seconds, at a step that all workers know in advance, rank 0 tells the others the time, whether a checkpoint
   is due, and which checkpoint has been written (`clock.py`). All workers look for preempted nodes.
4. A checkpoint is copied to host memory. Training continues while threads write the copy (`checkpoint_writer.py`).
"""

import itertools
import math
import statistics
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import ray.train
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.sample_order import DataOrder
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.batches import Batches, Reads, Share
from audiodiff_platform.train.checkpoint_writer import CheckpointWriter, Written
from audiodiff_platform.train.checkpoints import checkpoint_name, step_of
from audiodiff_platform.train.clock import INTERVAL_S, SharedClock
from audiodiff_platform.train.learner import Learner, TrainingStoppedError
from audiodiff_platform.train.resume import load_newest
from audiodiff_platform.train.run_log import RunLog
from audiodiff_platform.train.run_options import RunOptions
from audiodiff_platform.train.step_values import StepValues
from audiodiff_platform.train.validation.in_group import GroupValidation
from audiodiff_platform.train.validation_marks import validations_not_started

LOG_STEPS = 10
MAX_SKIPPED_STEPS = 20
"""Successive steps without a finite gradient after which training ends. A gradient scaler needs up to 16 steps to find
its scale."""


def learn(
    options: RunOptions,
    accelerator: Accelerator,
    learner: Learner,
    order: DataOrder,
    *,
    open_order: Callable[[], DataOrder] | None = None,
    validates: bool = False,
    validation: GroupValidation | None = None,
    token: str | None = None,
) -> dict[str, float]:
    """Train to the stopping point.

    Args:
        options: Options of the run.
        accelerator: Accelerator of this worker.
        learner: Networks to train.
        order: Data order of the dataset.
        open_order: Function with which data workers open the data order in their processes. None if the options set no
            data workers.
        validates: If True, request the validation of a checkpoint if no other checkpoint is in validation, and always
            request the validation of the last checkpoint.
        validation: Validates each checkpoint in the group, or None.
        token: Token of the lease of the run folder, without which no checkpoint is written. None if no lease is held.

    Returns:
        The values of the last log line by name.

    Raises:
        FloatingPointError: Too many successive steps had no finite gradient.
        TrainingStoppedError: A checkpoint cannot be written.
    """
    loop = _Loop(options, accelerator, learner, order, validates=validates, validation=validation, token=token)
    return loop.run(open_order or (lambda: order))


@dataclass(frozen=True)
class Notice:
    """Notice of rank 0 to all workers at an agreement.

    Args:
        written: Outcome of the checkpoint that was written since the last notice, or None.
        due: The time for a checkpoint has come.
    """

    written: Written | None
    due: bool


class _Loop:
    def __init__(
        self,
        options: RunOptions,
        accelerator: Accelerator,
        learner: Learner,
        order: DataOrder,
        *,
        validates: bool,
        validation: GroupValidation | None,
        token: str | None,
    ) -> None:
        self.options, self.accelerator, self.learner, self.order = options, accelerator, learner, order
        self.output = Folder(options.output_dir)
        self.attempt = uuid.uuid4().hex[:8]
        self.not_validated: list[str] = []  # queued by workers that have died, and not started
        if validates and accelerator.is_main_process:
            self.not_validated = validations_not_started(self.output)
        (self.not_validated,) = broadcast_object_list([self.not_validated])
        resumed = load_newest(self.output, accelerator, learner)
        self.loaded = None if resumed is None else resumed[0]
        progress: Mapping[str, Any] = {} if resumed is None else resumed[1]
        self.since_logged = StepValues(accelerator, progress.get("since_logged", {}))
        self.log = RunLog(
            options, learner.counts.step, progress.get("validations_told", {}), accelerator.is_main_process
        )
        self.writer = CheckpointWriter(options, self.log, token)
        self.validates, self.validation = validates, validation
        self.clock = SharedClock(
            accelerator,
            learner.counts.step,
            learner.counts.seconds,
            min(INTERVAL_S, options.checkpoint_minutes * 60),
        )
        self.saved_at = self.logged_at = time.monotonic()
        self.saved_step = learner.counts.step
        self.skipped_steps = 0
        self.checkpoint_due = False
        self.preempted: frozenset[str] = frozenset()

    def run(self, open_order: Callable[[], DataOrder]) -> dict[str, float]:
        options, learner, counts = self.options, self.learner, self.learner.counts
        max_steps = options.step_limit(self.order.dataset.rows)
        max_seconds = None if options.max_train_minutes is None else options.max_train_minutes * 60
        share = Share(options.batch_size, self.accelerator.process_index, self.accelerator.num_processes)
        reads = Reads(open_order, share, counts.samples)
        batches = Batches(reads, options.data_workers or 0, self.accelerator.device, learner.ready)
        first_progress: float | None = None
        first_step, began = counts.step, time.monotonic()
        with closing(batches), closing(self.log), closing(self.writer):
            for name in self.not_validated:
                self._report(name, validate=True)
            while True:
                if counts.step == self.clock.next_step:
                    self._agree()
                counts.seconds = self.clock.seconds_at(counts.step)
                progress = max(
                    0.0 if max_steps is None else counts.step / max(1, max_steps),
                    0.0 if max_seconds is None else counts.seconds / max_seconds,
                )
                first_progress = progress if first_progress is None else first_progress
                finished = progress >= 1 or max_steps == 0
                if finished or (self.checkpoint_due and not self.since_logged):
                    self._checkpoint(last=finished)
                if finished:
                    return self.log.last
                micro_batches = list(itertools.islice(batches, options.gradient_accumulation_steps))
                self.since_logged.add(learner.learn(micro_batches, progress))
                if counts.step == first_step + 1:
                    learner.snapshot()  # allocates the host memory of checkpoints
                counts.samples += options.batch_size * options.gradient_accumulation_steps
                if counts.step % LOG_STEPS == 0:
                    advance = progress - first_progress
                    left = (time.monotonic() - began) * (1 - progress) / advance if advance > 0 else None
                    self._log(batches, progress, left)

    def _log(self, batches: Batches, progress: float, left: float | None) -> None:
        """Log the means since the last log line, on all workers together.

        Raises:
            FloatingPointError: Too many successive steps had no finite gradient.
        """
        now = time.monotonic()
        self.since_logged.add({"data_wait": batches.waited_s / max(now - self.logged_at, 1e-9)})
        self.logged_at, batches.waited_s = now, 0.0
        values = self.since_logged.read()
        self.since_logged.clear()
        means = {name: statistics.fmean(finite) for name, steps in values.items() if (finite := _finite(steps))}
        for norm, loss in zip(values["gradient_norm"], values["loss"], strict=True):
            self.skipped_steps = 0 if math.isfinite(norm) else self.skipped_steps + 1
            if self.skipped_steps == MAX_SKIPPED_STEPS:
                raise FloatingPointError(
                    f"gradient norm {norm} for {MAX_SKIPPED_STEPS} steps up to step {self.learner.counts.step} "
                    f"(loss {loss}): train in another folder with a lower learning_rate"
                )
        skipped = sum(not math.isfinite(norm) for norm in values["gradient_norm"])
        self.log.add(self.learner.counts, means | ({"skipped_steps": skipped} if skipped else {}), progress, left)

    def _agree(self) -> None:
        """Agree with the other workers on the time, on checkpoints and on preempted nodes.

        Rank 0 decides for all workers. Otherwise one worker could stop while another waits for its gradient.
        """
        step = self.learner.counts.step
        notice: Notice = self.clock.agree(step, Notice(written=self.writer.poll(), due=self._is_due(step)))
        self.checkpoint_due = self.checkpoint_due or notice.due
        self._told(notice.written)
        preemption = ray.train.get_preemption_info()
        preempted = frozenset(() if preemption is None else preemption.preempted_node_ids)
        newly_preempted = preempted - self.preempted
        self.preempted = preempted
        if newly_preempted and step > self.saved_step:
            if self.accelerator.is_main_process:
                say(f"step {step}: {len(newly_preempted)} node(s) of this run will be preempted: writing a checkpoint")
            self._checkpoint(urgent=True)

    def _is_due(self, step: int) -> bool:
        """Return True if a checkpoint is due.

        While the previous checkpoint is being written, the next is put off for at most another interval.
        """
        intervals = (time.monotonic() - self.saved_at) / (self.options.checkpoint_minutes * 60)
        return step > self.saved_step and intervals > (2 if self.writer.busy else 1)

    def _checkpoint(self, *, last: bool = False, urgent: bool = False) -> None:
        """Copy the state, start to write it and validate it, on all workers together.

        Args:
            last: True for the last checkpoint of the run, for which all workers wait.
            urgent: True if the checkpoint must be written at once and is not validated.

        Raises:
            TrainingStoppedError: A checkpoint cannot be written.
        """
        self._wait()  # a checkpoint that is still being written, whose memory the copy reuses
        since_logged = self.since_logged.read()
        step = self.learner.counts.step
        snapshot = self.learner.snapshot()
        written = self.loaded is not None and step_of(self.loaded) == step
        if self.accelerator.is_main_process:
            name = self.loaded if self.loaded is not None and written else checkpoint_name(step, self.attempt)
            self.log.report_validations()
            progress = {
                **self.learner.progress(),
                "workers": self.accelerator.num_processes,
                "device": _device_name(self.accelerator),
                "since_logged": since_logged,
                "logged": self.log.last,
                "validations_told": self.log.reported_steps(),
            }
            queues = self.validates and name not in self.not_validated
            self.writer.start(name, snapshot, progress, "never" if not queues else "always" if last else "if free")
        else:
            self.writer.assist(snapshot)
        self.saved_at, self.saved_step, self.checkpoint_due = time.monotonic(), step, False
        if self.validation is not None and not urgent:
            self.validation(step)
        if last or urgent:
            self._wait()

    def _wait(self) -> None:
        """Wait for the checkpoint that is being written, if any, on all workers together."""
        (written,) = broadcast_object_list([self.writer.wait() if self.accelerator.is_main_process else None])
        self._told(written)

    def _told(self, written: Written | None) -> None:
        """Report a written checkpoint to Ray Train, on all workers together.

        Raises:
            TrainingStoppedError: The checkpoint could not be written.
        """
        if written is None:
            return
        if written.failure is not None:
            raise TrainingStoppedError(written.failure)
        self._report(written.name, validate=written.queued)

    def _report(self, name: str, validate: bool) -> None:
        """Report a checkpoint to Ray Train and request its validation if `validate`, on all workers together."""
        metrics = {"step": self.learner.counts.step, "samples": self.learner.counts.samples}
        if not self.accelerator.is_main_process:
            ray.train.report(metrics)
            return
        # Ray Train accepts only checkpoints in its own folder. This path is never read or written.
        storage = ray.train.get_context().get_storage()
        pointer = ray.train.Checkpoint(
            f"{storage.experiment_fs_path}/{name.rpartition('/')[2]}", storage.storage_filesystem
        )
        validation: Any = ray.train.ValidationTaskConfig(fn_kwargs={"name": name}) if validate else False
        ray.train.report(
            metrics, checkpoint=pointer, checkpoint_upload_fn=lambda checkpoint, _: checkpoint, validation=validation
        )


def _device_name(accelerator: Accelerator) -> str:
    return (
        torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else accelerator.device.type
    )


def _finite(values: Sequence[float]) -> list[float]:
    """Return the finite values. Some gradient norms are infinite or NaN."""
    return [value for value in values if math.isfinite(value)]
