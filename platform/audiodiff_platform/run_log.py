"""What a person looks at while training runs: the console, `metrics.jsonl`, and trackers by name.

    OUTPUT_DIR/metrics.jsonl        a line each LOG_STEPS steps
    OUTPUT_DIR/tensorboard/train/   loss, learning rate, gradient norm, samples per second
    OUTPUT_DIR/tensorboard/validation/   (`validation.py`) validation loss by noise level, pictures and audio with fixed seeds

TensorBoard's files of a run folder on an object store are written to a local folder and copied. The other trackers are accelerate's; a
restarted worker goes on with the same run of theirs. They are told what validation found with the next checkpoint, and by the job at the
end. A checkpoint says what each has been told, so a restart tells them some things twice, none never. Training goes on without a tracker
that is out of reach: the console says so, and it is tried again with the next checkpoint.
"""

import importlib
import importlib.util
import json
import math
import os
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from audiodiff_platform.cluster import say
from audiodiff_platform.storage import Folder
from audiodiff_platform.training_state import VALIDATION, checkpoint_progress, newest_checkpoint, validation_results
from audiodiff_platform.work.progress import duration

if TYPE_CHECKING:

    from audiodiff_platform.train_options import RunOptions
    from audiodiff_platform.training_loop import Counts

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
VALIDATED_STEP = "validated_step"
SAID_EVERY_S = 10.0
COPIED_EVERY_S = 60.0  # to an object store, which knows no appending

TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Raises ValueError where a tracker's package is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        extras = ",".join(missing)
        raise ValueError(f"report_to {','.join(names)}: {extras} cannot be imported: pip install 'audiodiff[{extras}]', or report_to none")


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

    def __init__(self, options: "RunOptions", step: int, told: Mapping[str, Collection[int]], writes: bool) -> None:
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
        self.tensorboard = TensorBoardFolder(self.folder, "train", purge_step=step + 1) if "tensorboard" in options.report_to else None
        self.trackers = [_tracker(name, options) for name in options.report_to if name != "tensorboard"]
        self.told = {name: set(steps) for name, steps in told.items()}
        self.unreached: set[str] = set()

    def add(self, counts: "Counts", values: Mapping[str, float], progress: float, left: float | None) -> None:
        """Takes in the means since the last line; `left`: seconds until the end, where they can be told."""
        step, samples = counts.step, counts.samples
        self.last, self.step = dict(values), step
        if not self.writes:
            return
        now = time.monotonic()
        rate = {} if self.samples is None else {"samples_per_second": round((samples - self.samples) / max(now - self.added_at, 1e-9), 2)}
        self.samples, self.added_at = samples, now
        self.lines.append(json.dumps({"step": step, "samples": samples, "seconds": round(counts.seconds, 2), **values, **rate}))
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
            self.told[tracker.name] = _tell(tracker, results, self.told.get(tracker.name, set()), self.step)
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
            _finish(tracker)

    def _track(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self.trackers:
            if tracker.name not in self.unreached and not _took(tracker, values, step):
                self.unreached.add(tracker.name)  # clients take minutes to give up
        if self.tensorboard is not None:
            for name, value in values.items():
                self.tensorboard.writer.add_scalar(name, value, step)


def tell_last_validations(options: "RunOptions") -> None:
    """Hands what validation has found since the last checkpoint to the trackers, when the workers and validation have ended."""
    names = [name for name in options.report_to if name != "tensorboard"]
    output = Folder(options.output_dir)
    last = newest_checkpoint(output)
    if last is None or not names:
        return
    progress, results = checkpoint_progress(output, last), validation_results(output)
    for name in names:
        try:
            tracker = _tracker(name, options)
        except Exception as error:  # as in _took
            say(f"{name} cannot be told of the last validations ({' '.join(str(error).split())}): {output.uri}/{VALIDATION} has them")
            continue
        _tell(tracker, results, set(progress["validations_told"].get(name, ())), progress["step"])
        _finish(tracker)


def _tell(tracker: Any, results: Mapping[int, Mapping[str, float]], told: set[int], step: int) -> set[int]:
    """Tells what is new in the steps just after `step`, where the log is, with the step that was validated: wandb takes nothing at one that is past.

    Gives the validated steps that the tracker now knows of: where it took nothing, the rest is left for the next time.
    """
    known = set(told)
    for told_at, validated in enumerate(sorted(results.keys() - told), step + 1):
        if not _took(tracker, {**results[validated], VALIDATED_STEP: validated}, told_at):
            break
        known.add(validated)
    return known


def _took(tracker: Any, values: Mapping[str, float], step: int) -> bool:
    """Hands values to a tracker; whether it took them. Clients raise errors of many kinds, none of which is worth a training."""
    try:
        tracker.log(dict(values), step=step)
    except Exception as error:
        say(f"{tracker.name} takes nothing at step {step} ({' '.join(str(error).split())}): the run folder has it, and training goes on")
        return False
    return True


def _finish(tracker: Any) -> None:
    try:
        tracker.finish()
    except Exception as error:  # as in _took
        say(f"{tracker.name} did not end its run ({' '.join(str(error).split())})")


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _step(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except ValueError:  # cut off by a kill
        return math.inf


def _values(line: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in {"step", "samples", "seconds", "samples_per_second"}}


def _tracker(name: str, options: "RunOptions") -> Any:
    """accelerate's tracker, begun, or gone on with where this run folder has one already."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    project, run = "audiodiff", options.run_id()
    told = options.model_dump()
    match name:
        case "wandb":
            tracker = LOGGER_TYPE_TO_CLASS[name](project, id=run, resume="allow")
        case "trackio":
            tracker = LOGGER_TYPE_TO_CLASS[name](project, name=run, resume="allow")
        case _:
            earlier = _mlflow_run(project, run)
            tracker = LOGGER_TYPE_TO_CLASS[name](project, run_id=earlier, run_name=run)
            told = told if earlier is None else {}  # mlflow refuses another value of what a run was told, such as a later stopping point
    tracker.start()
    tracker.store_init_configuration(told)
    return tracker


def _mlflow_run(project: str, name: str) -> str | None:
    """The id of the run of that name, as mlflow knows runs by ids of its own."""
    mlflow = importlib.import_module("mlflow")

    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", project)  # by which accelerate goes first
    runs = mlflow.search_runs(experiment_names=[experiment], filter_string=f"attributes.run_name = '{name}'", max_results=1, output_format="list")
    return runs[0].info.run_id if runs else None
