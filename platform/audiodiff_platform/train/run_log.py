"""Log of a training run: console, `metrics.jsonl`, TensorBoard event files and experiment trackers.

    OUTPUT_DIR/metrics.jsonl             one line every LOG_STEPS steps
    OUTPUT_DIR/tensorboard/train/        loss, learning rate, gradient norm, samples per second
    OUTPUT_DIR/tensorboard/validation/   written by `validation/`: validation loss by noise level, images and audio

For a run folder on an object store, the TensorBoard files are written to a local folder and then uploaded.

The experiment trackers are trackers of accelerate. Restarted workers continue the same tracker run. Trackers receive
the results of validation at the next checkpoint, and from the job at the end. Each checkpoint records the results that
each tracker has received. After a restart, a tracker may therefore receive a result twice, but misses none. Training
continues while a tracker is unreachable: a console line reports the failure, and the next checkpoint retries.
"""

import json
import math
import tempfile
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from audiodiff_platform.entry.terminal import duration, say
from audiodiff_platform.mel_data.run_folder import METRICS, TENSORBOARD
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import validation_results
from audiodiff_platform.train.divergence import LossWatch
from audiodiff_platform.train.learner import TrainingProgress
from audiodiff_platform.train.run_options import RunOptions
from audiodiff_platform.train.trackers import finish_tracker, log_results, log_values, start_tracker

CONSOLE_INTERVAL_S = 10.0
UPLOAD_INTERVAL_S = 60.0  # an object store cannot append, so each upload writes the complete file


class TensorBoardFolder:
    """TensorBoard event files of one writer in a run folder, local or on an object store.

    Args:
        output: The run folder.
        part: Name of the folder below `tensorboard/`.
        purge_step: Step from which TensorBoard discards the events of earlier writers. None keeps all events.
    """

    def __init__(self, output: Folder, part: str, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # the import takes a second

        self.output, self.name = output, f"{TENSORBOARD}/{part}"
        self.scratch = None if output.is_local else tempfile.TemporaryDirectory(prefix="audiodiff-")
        folder = output.path(self.name) if self.scratch is None else self.scratch.name
        self.writer: SummaryWriter = SummaryWriter(folder, purge_step=purge_step)

    def flush(self) -> None:
        """Write all pending events to the run folder."""
        self.writer.flush()
        if self.scratch is not None:
            for file in Path(self.scratch.name).iterdir():
                self.output.write(f"{self.name}/{file.name}", file.read_bytes())

    def close(self) -> None:
        """Flush and close the writer, and delete the local folder of an object store."""
        self.flush()
        self.writer.close()
        if self.scratch is not None:
            self.scratch.cleanup()


class RunLog:
    """Log of a run, which rank 0 writes.

    Creating the log removes the lines of `metrics.jsonl` after the step that training resumes from.

    Args:
        options: Options of the run.
        step: Step that training resumes from.
        reported: Validated steps whose results each tracker has received, by tracker name.
        writes: True on rank 0. On other ranks, the log only keeps the last values.
    """

    def __init__(self, options: RunOptions, step: int, reported: Mapping[str, Collection[int]], writes: bool) -> None:
        self.writes, self.folder, self.step = writes, Folder(options.output_dir), step
        self.last: dict[str, float] = {}
        if not writes:
            return
        lines = self.folder.read(METRICS).decode().splitlines() if self.folder.exists(METRICS) else []
        self.lines = [line for line in lines if _step(line) <= step]
        if self.lines:
            self.last = _values(json.loads(self.lines[-1]))
        self.folder.write(METRICS, _joined(self.lines))
        self.written, self.size = len(self.lines), len(_joined(self.lines))
        self.printed_at = self.uploaded_at = self.added_at = time.monotonic()
        self.samples: int | None = None
        self.watch = LossWatch()
        self.tensorboard = (
            TensorBoardFolder(self.folder, "train", purge_step=step + 1) if "tensorboard" in options.report_to else None
        )
        self.trackers = [start_tracker(name, options) for name in options.report_to if name != "tensorboard"]
        self.reported = {name: set(steps) for name, steps in reported.items()}
        self.unreachable: set[str] = set()
        self._flushing = threading.Lock()
        self._background = ThreadPoolExecutor(1, "log")

    def add(self, counts: TrainingProgress, values: Mapping[str, float], progress: float, left: float | None) -> None:
        """Add a line with the means of the values since the previous line.

        Args:
            counts: Steps, samples and seconds so far.
            values: Means by name. A value that was finite in no step is missing, such as `loss`.
            progress: Completed fraction of training, in [0, 1].
            left: Estimated seconds until the end, or None if unknown.
        """
        step, samples = counts.step, counts.samples
        self.last, self.step = dict(values), step
        if not self.writes:
            return
        now = time.monotonic()
        rate = (
            {}
            if self.samples is None
            else {"samples_per_second": round((samples - self.samples) / max(now - self.added_at, 1e-9), 2)}
        )
        self.samples, self.added_at = samples, now
        self.lines.append(
            json.dumps({"step": step, "samples": samples, "seconds": round(counts.seconds, 2), **values, **rate})
        )
        self._track({**values, **rate}, step)
        # The loss of an autoencoder changes when its discriminator starts. Its reconstruction does not.
        watched = values.get("reconstruction", values.get("loss"))
        if watched is not None and (notice := self.watch.add(step, watched)) is not None:
            say(notice)
        if now - self.printed_at > CONSOLE_INTERVAL_S:
            self.printed_at = now
            remaining = "" if left is None else f", {duration(left)} left"
            speed = f", {rate['samples_per_second']:.1f} samples/s" if rate else ""
            loss = f"{values['loss']:.4f}" if "loss" in values else "not finite"
            say(f"step {step}, {progress:.0%}, loss {loss}{speed}{remaining}")
            if self.folder.is_local or now - self.uploaded_at > UPLOAD_INTERVAL_S:
                self.uploaded_at = now
                self._background.submit(self._try_to_flush)

    def report_validations(self) -> None:
        """Log the validation results that the trackers have not received yet, or print why they cannot be read."""
        if not self.writes or not self.trackers:
            return
        try:
            results = validation_results(self.folder)
        except OSError as error:
            say(f"validation results cannot be read ({error}): retrying with the next checkpoint")
            return
        for tracker in self.trackers:
            self.reported[tracker.name] = log_results(
                tracker, results, self.reported.get(tracker.name, set()), self.step
            )
        self.unreachable = {tracker.name for tracker in self.trackers if results.keys() - self.reported[tracker.name]}

    def reported_steps(self) -> dict[str, list[int]]:
        """Return the validated steps whose results each tracker has received, by tracker name."""
        return {tracker: sorted(steps) for tracker, steps in self.reported.items()}

    def flush(self) -> None:
        """Write all pending lines and TensorBoard events to the run folder. Any thread may call this method.

        Raises:
            OSError: The disk is full or the store is unreachable. The lines stay pending.
        """
        if not self.writes:
            return
        with self._flushing:
            lines = list(self.lines)
            if self.folder.is_local:
                with open(self.folder.path(METRICS), "r+b") as file:
                    file.truncate(self.size)  # a full disk may have left a partial line
                    file.seek(self.size)
                    file.write(_joined(lines[self.written :]))
                    file.flush()
                    self.size = file.tell()
            else:
                self.folder.write(METRICS, _joined(lines))
            self.written = len(lines)
            if self.tensorboard is not None:
                self.tensorboard.flush()

    def _try_to_flush(self) -> None:
        try:
            self.flush()
        except OSError as error:  # the next checkpoint waits until the log can be written
            say(f"{METRICS} cannot be written ({error}): retrying later")

    def close(self) -> None:
        """Flush the log and finish the tracker runs; print errors instead of raising them."""
        if not self.writes:
            return
        self._background.shutdown(wait=True)
        try:
            self.flush()
            if self.tensorboard is not None:
                self.tensorboard.close()
        except OSError as error:  # if the same error ends training, a later message states the remedy
            say(f"the last lines of {METRICS} or {TENSORBOARD} cannot be written ({error})")
        for tracker in self.trackers:
            finish_tracker(tracker)

    def _track(self, values: Mapping[str, float], step: int) -> None:
        """Log values to TensorBoard and to the trackers that are reachable."""
        for tracker in self.trackers:
            if tracker.name not in self.unreachable and not log_values(tracker, values, step):
                self.unreachable.add(tracker.name)  # each attempt may block for minutes
        if self.tensorboard is not None:
            for name, value in values.items():
                self.tensorboard.writer.add_scalar(name, value, step)


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _step(line: str) -> float:
    """Return the step of a line, or infinity for an incomplete line, which a killed process leaves."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return math.inf


def _values(line: Mapping[str, float]) -> dict[str, float]:
    """Return the means in a line, without the counts and the rate."""
    return {
        name: value for name, value in line.items() if name not in {"step", "samples", "seconds", "samples_per_second"}
    }
