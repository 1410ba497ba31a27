"""The loop that every training runs, in each worker: what is learned, from which batches, until when, with which checkpoints.

1. All workers load the newest sound checkpoint, or start anew. Validation is told again of what it has in hand and has not heard of.
2. They step together over the same stretch of the data order, each on its share, read ahead by a thread.
3. Rank 0's clock says when to write a checkpoint, when to look whether a node is being taken away, and when to stop.
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
    put_checkpoint,
    remove_superseded,
    soundest_checkpoint,
    step_of,
)
from audiodiff_platform.train.learner import Learner, TrainingStoppedError
from audiodiff_platform.train.options import RunOptions
from audiodiff_platform.train.run_log import RunLog
from audiodiff_platform.train.validation_marks import in_validation, queue_for_validation, validations_not_started

LOG_STEPS = 10
PREEMPTION_LOOK_S = 2.0
WRITE_PAUSES_S = (1.0, 4.0, 16.0)  # before a checkpoint that could not be written is tried again


def learn(
    options: RunOptions,
    accelerator: Accelerator,
    learner: Learner,
    order: DataOrder,
    *,
    validates: bool = False,
    token: str | None = None,
) -> dict[str, float]:
    """Train to the stopping point -> the last metrics.

    With `validates`, each checkpoint is handed to validation. `token` names the lease of the run folder, without which no
    checkpoint is written; None where no lease is held.
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
        self.unheard: list[str] = []
        told = self._load()
        self.log = RunLog(options, learner.counts.step, told, accelerator.is_main_process)
        self.earlier, self.began = learner.counts.seconds, time.monotonic()
        self.saved_at = self.looked_at = self.began
        self.saved_step = learner.counts.step
        self.leaving: frozenset[str] = frozenset()
        self.handed: str | None = None

    def run(self) -> dict[str, float]:
        options, learner, counts = self.options, self.learner, self.learner.counts
        steps_at_most = options.steps_at_most(self.order.dataset.rows)
        seconds_at_most = None if options.max_train_minutes is None else options.max_train_minutes * 60
        began_at: float | None = None
        share = Share(options.train_batch_size, self.accelerator.process_index, self.accelerator.num_processes)
        batches = read_ahead(self.order, counts.samples, share, learner.ready)
        with closing(batches), closing(self.log):
            for name in self.unheard:
                self._report(name, validate=True)
            while True:
                due = self._agree()
                progress = max(
                    0.0 if steps_at_most is None else counts.step / max(1, steps_at_most),
                    0.0 if seconds_at_most is None else counts.seconds / seconds_at_most,
                )
                began_at = progress if began_at is None else began_at
                finished = progress >= 1 or steps_at_most == 0
                if finished or due:
                    self._checkpoint(finished)
                if finished:
                    return self.log.last
                micro_batches = list(itertools.islice(batches, options.gradient_accumulation_steps))
                for name, value in learner.learn(micro_batches, progress).items():
                    self.since_logged.setdefault(name, []).append(value)
                counts.samples += options.train_batch_size * options.gradient_accumulation_steps
                if counts.step % LOG_STEPS == 0:
                    means = {
                        name: statistics.fmean(_finite(values) or [0.0]) for name, values in self._shared().items()
                    }
                    self.since_logged = {}
                    elapsed = time.monotonic() - self.began
                    left = elapsed * (1 - progress) / (progress - began_at) if progress > began_at else None
                    self.log.add(counts, means, progress, left)

    def _load(self) -> dict[str, list[int]]:
        """Makes the learner what the newest sound checkpoint holds, if there is one; gives the validated steps that each tracker knows of."""
        found: list[Any] = [None, []]
        if self.accelerator.is_main_process:
            found = [soundest_checkpoint(self.output), validations_not_started(self.output) if self.validates else []]
        self.loaded, self.unheard = broadcast_object_list(found)
        if self.loaded is None:
            return {}
        with local_checkpoint(self.output, self.loaded) as (folder, progress):
            self.learner.load(folder, progress)
        self.since_logged = {name: list(values) for name, values in progress["since_logged"].items()}
        return dict(progress["validations_told"])

    def _agree(self) -> bool:
        """Sets the clock; whether a checkpoint is due. Rank 0 decides for all, or one would stop while another waits for its gradient."""
        now = time.monotonic()
        learned = self.learner.counts.step > self.saved_step and not self.since_logged
        due = learned and now - self.saved_at > self.options.checkpoint_minutes * 60
        values = [self.earlier + now - self.began, float(due), float(now - self.looked_at > PREEMPTION_LOOK_S)]
        seconds, due_by_clock, look = broadcast(
            torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        ).tolist()
        self.learner.counts.seconds = seconds
        if not look:
            return bool(due_by_clock)
        self.looked_at = now
        preemption = ray.train.get_preemption_info()
        leaving = frozenset(() if preemption is None else preemption.preempted_node_ids)
        news = leaving - self.leaving
        self.leaving = leaving
        if news and self.accelerator.is_main_process:
            say(
                f"step {self.learner.counts.step}: {len(news)} node(s) of this training will be taken away: writing a checkpoint"
            )
        return bool(due_by_clock or news)

    def _shared(self) -> dict[str, list[float]]:
        """What was logged since the last line, each step's mean over the workers."""
        if not self.since_logged:
            return {}
        mine = torch.tensor(
            list(itertools.chain(*self.since_logged.values())), dtype=torch.float64, device=self.accelerator.device
        )
        values = iter(reduce(mine, reduction="mean").tolist())
        return {name: list(itertools.islice(values, len(steps))) for name, steps in self.since_logged.items()}

    def _checkpoint(self, finished: bool) -> None:
        """Writes a checkpoint and tells Ray Train of it, all workers together. Raises TrainingStoppedError where it cannot be written."""
        self.since_logged = self._shared()
        save = self.learner.snapshot()
        if self.loaded is not None and step_of(self.loaded) == self.learner.counts.step:
            name = self.loaded
        else:
            name = checkpoint_name(self.learner.counts.step, self.attempt)
        (failure,) = broadcast_object_list(
            [self._written(name, save, finished) if self.accelerator.is_main_process else None]
        )
        if failure is not None:
            raise TrainingStoppedError(failure)
        self.saved_at, self.saved_step = time.monotonic(), self.learner.counts.step
        self._report(name, validate=self.handed == name)

    def _report(self, name: str, validate: bool) -> None:
        """Tells Ray Train of a checkpoint, and whether to validate it, all workers together."""
        metrics = {"step": self.learner.counts.step, "samples": self.learner.counts.samples}
        if not self.accelerator.is_main_process:
            ray.train.report(metrics)
            return
        storage = (
            ray.train.get_context().get_storage()
        )  # Ray Train lists checkpoints only in its own folder, where nothing is put
        pointer = ray.train.Checkpoint(f"{storage.experiment_fs_path}/{Path(name).name}", storage.storage_filesystem)
        validation: Any = ray.train.ValidationTaskConfig(fn_kwargs={"name": name}) if validate else False
        ray.train.report(
            metrics, checkpoint=pointer, checkpoint_upload_fn=lambda checkpoint, _: checkpoint, validation=validation
        )

    def _written(self, name: str, save: Callable[[Path], None], finished: bool) -> str | None:
        """Rank 0: writes the log and a checkpoint, and hands it to validation where that has time; it always has for the last.

        Where the disk is full or the store out of reach, it is tried again, then the error is given.
        """
        progress = {
            **self.learner.progress(),
            "workers": self.accelerator.num_processes,
            "device": _device_name(self.accelerator),
            "since_logged": self.since_logged,
            "logged": self.log.last,
        }
        for pause in (*WRITE_PAUSES_S, None):
            try:
                if self.token is not None:
                    require_token(self.output, self.token)
                self.log.flush()
                self.log.tell_validations()
                put_checkpoint(
                    self.output,
                    name,
                    save,
                    {
                        **progress,
                        "validations_told": {tracker: sorted(steps) for tracker, steps in self.log.told.items()},
                    },
                )
                if self.validates and name not in self.unheard and (finished or not in_validation(self.output)):
                    queue_for_validation(self.output, name)
                    self.handed = name
                remove_superseded(self.output, self.options.checkpoints_kept, self.options.judged_by)
            except LeaseLostError as error:
                return str(error)
            except (
                OSError,
                RuntimeError,
                SafetensorError,
            ) as error:  # the last two: what torch and safetensors make of an OSError
                failure = f"checkpoint {self.output.uri}/{name} cannot be written ({' '.join(str(error).split())})"
                if pause is None:
                    return (
                        f"{failure}: with that mended, run the same command again to go on from the checkpoint before"
                    )
                say(f"{failure}: trying again in {pause:.0f} s")
                time.sleep(pause)
            else:
                break
        return None


def _device_name(accelerator: Accelerator) -> str:
    return (
        torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else accelerator.device.type
    )


def _finite(values: Sequence[float]) -> list[float]:
    """With fp16, not all gradient norms are."""
    return [value for value in values if math.isfinite(value)]
