"""What a person looks at while training runs: the console, `metrics.jsonl`, and trackers by name.

    OUTPUT_DIR/metrics.jsonl        a line each LOG_STEPS steps
    OUTPUT_DIR/tensorboard/train/   loss, learning rate, gradient norm, samples per second
    OUTPUT_DIR/tensorboard/validation/   (`validation.py`) validation loss by noise level, pictures and audio with fixed seeds

TensorBoard's files of a run folder on an object store are written to a local folder and copied. The other trackers are accelerate's; a
restarted worker goes on with the same run of theirs. They are told what validation found with the next checkpoint, and by the job at the
end. A checkpoint says what each has been told, so a restart tells them some things twice, none never. Training goes on without a tracker
that is out of reach: the console says so, and it is tried again with the next checkpoint.
"""

import json
import math
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from audiodiff_platform.entry.terminal import duration, say
from audiodiff_platform.mel_data.run_folder import METRICS, TENSORBOARD
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import validation_results
from audiodiff_platform.train.learner import TrainingProgress
from audiodiff_platform.train.options import RunOptions
from audiodiff_platform.train.trackers import finish_tracker, start_tracker, tell, took

SAID_EVERY_S = 10.0
COPIED_EVERY_S = 60.0  # to an object store, which knows no appending


class TensorBoardFolder:
    """Event files of one writer in a run folder, local or not."""

    def __init__(self, output: Folder, part: str, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second

        self.output, self.name = output, f"{TENSORBOARD}/{part}"
        self.scratch = None if output.is_local else tempfile.TemporaryDirectory(prefix="audiodiff-")
        folder = output.path(self.name) if self.scratch is None else self.scratch.name
        self.writer: SummaryWriter = SummaryWriter(folder, purge_step=purge_step)

    def flush(self) -> None:
        """Makes what was written so far visible in the run folder."""
        self.writer.flush()
        if self.scratch is not None:
            for file in Path(self.scratch.name).iterdir():
                self.output.write(f"{self.name}/{file.name}", file.read_bytes())

    def close(self) -> None:
        self.flush()
        self.writer.close()
        if self.scratch is not None:
            self.scratch.cleanup()


class RunLog:
    """Written by rank 0 (`writes`); lines after the step that training goes on from are dropped. `told`: the validated steps that each tracker knows of."""

    def __init__(self, options: RunOptions, step: int, told: Mapping[str, Collection[int]], writes: bool) -> None:
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
        self.said_at = self.copied_at = self.added_at = time.monotonic()
        self.samples: int | None = None
        self.tensorboard = (
            TensorBoardFolder(self.folder, "train", purge_step=step + 1) if "tensorboard" in options.report_to else None
        )
        self.trackers = [start_tracker(name, options) for name in options.report_to if name != "tensorboard"]
        self.told = {name: set(steps) for name, steps in told.items()}
        self.unreached: set[str] = set()

    def add(self, counts: TrainingProgress, values: Mapping[str, float], progress: float, left: float | None) -> None:
        """Takes in the means since the last line; `left`: seconds until the end, where they can be told."""
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
        if now - self.said_at > SAID_EVERY_S:
            self.said_at = now
            remaining = "" if left is None else f", {duration(left)} left"
            speed = f", {rate['samples_per_second']:.1f} samples/s" if rate else ""
            say(f"step {step}, {progress:.0%}, loss {values['loss']:.4f}{speed}{remaining}")
            if self.folder.is_local or now - self.copied_at > COPIED_EVERY_S:
                self.copied_at = now
                try:
                    self.flush()
                except OSError as error:  # the next checkpoint waits until it can be written
                    say(f"{METRICS} cannot be written ({error}): trying again later")

    def tell_validations(self) -> None:
        """Hands what validation has found meanwhile to the trackers that it cannot write to itself."""
        if not self.trackers:
            return
        results = validation_results(self.folder)
        for tracker in self.trackers:
            self.told[tracker.name] = tell(tracker, results, self.told.get(tracker.name, set()), self.step)
        self.unreached = {tracker.name for tracker in self.trackers if results.keys() - self.told[tracker.name]}

    def flush(self) -> None:
        if not self.writes:
            return
        if self.folder.is_local:
            with open(self.folder.path(METRICS), "r+b") as file:
                file.truncate(self.size)  # what a full disk let through of a line
                file.seek(self.size)
                file.write(_joined(self.lines[self.written :]))
                file.flush()
                self.size = file.tell()
        else:
            self.folder.write(METRICS, _joined(self.lines))
        self.written = len(self.lines)
        if self.tensorboard is not None:
            self.tensorboard.flush()

    def close(self) -> None:
        if not self.writes:
            return
        try:
            self.flush()
            if self.tensorboard is not None:
                self.tensorboard.close()
        except OSError as error:  # where training ends for that, its own message says what to do
            say(f"{METRICS} or {TENSORBOARD} cannot be written to its end ({error})")
        for tracker in self.trackers:
            finish_tracker(tracker)

    def _track(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self.trackers:
            if tracker.name not in self.unreached and not took(tracker, values, step):
                self.unreached.add(tracker.name)  # clients take minutes to give up
        if self.tensorboard is not None:
            for name, value in values.items():
                self.tensorboard.writer.add_scalar(name, value, step)


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _step(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except ValueError:  # cut off by a kill
        return math.inf


def _values(line: Mapping[str, float]) -> dict[str, float]:
    return {
        name: value for name, value in line.items() if name not in {"step", "samples", "seconds", "samples_per_second"}
    }
