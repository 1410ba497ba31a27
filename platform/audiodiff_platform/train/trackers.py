"""Experiment trackers of accelerate, whose failures do not end training."""

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.run_folder import VALIDATION_RESULTS
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import checkpoint_progress, newest_checkpoint, validation_results
from audiodiff_platform.train.run_options import RunOptions, TrackerName

VALIDATED_STEP = "validated_step"


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Check that the packages of the trackers are installed.

    Raises:
        ValueError: A package is missing.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        extras = ",".join(missing)
        raise ValueError(
            f"report_to {','.join(names)}: {extras} cannot be imported: "
            f"pip install 'audiodiff[{extras}]', or set report_to none"
        )


def report_last_validations(options: RunOptions) -> None:
    """Log the validation results that were written after the last checkpoint to the trackers.

    The job calls this function after the workers and validation have ended.
    """
    names = [name for name in options.report_to if name != "tensorboard"]
    output = Folder(options.output_dir)
    checkpoint = newest_checkpoint(output)
    if checkpoint is None or not names:
        return
    progress, results = checkpoint_progress(output, checkpoint), validation_results(output)
    for name in names:
        try:
            tracker = start_tracker(name, options)
        except Exception as error:  # any client error, as in log_values
            say(
                f"{name} did not receive the last validation results ({_one_line(error)}): "
                f"they are in {output.uri}/{VALIDATION_RESULTS}"
            )
            continue
        log_results(tracker, results, set(progress["validations_told"].get(name, ())), progress["step"])
        finish_tracker(tracker)


def log_results(tracker: Any, results: Mapping[int, Mapping[str, float]], reported: set[int], step: int) -> set[int]:
    """Log the validation results that a tracker has not received yet.

    The results are logged at the steps just after `step`, each with the validated step as a value, because wandb
    rejects values at steps before the last one.

    Args:
        tracker: A started tracker.
        results: Validation metrics by validated step.
        reported: Validated steps whose results the tracker has received.
        step: Last step that was logged.

    Returns:
        The validated steps whose results the tracker has received now. After a failure, the remaining steps are
        missing.
    """
    received = set(reported)
    for log_step, validated in enumerate(sorted(results.keys() - reported), step + 1):
        if not log_values(tracker, {**results[validated], VALIDATED_STEP: validated}, log_step):
            break
        received.add(validated)
    return received


def log_values(tracker: Any, values: Mapping[str, float], step: int) -> bool:
    """Log values to a tracker, and return True on success.

    Tracker clients raise errors of many kinds. None of them may end training, so they are printed.
    """
    try:
        tracker.log(dict(values), step=step)
    except Exception as error:
        say(
            f"{tracker.name} failed to log step {step} ({_one_line(error)}): "
            "training continues, and the run folder holds the values"
        )
        return False
    return True


def finish_tracker(tracker: Any) -> None:
    """Finish the run of a tracker; print an error instead of raising it."""
    try:
        tracker.finish()
    except Exception as error:  # any client error, as in log_values
        say(f"{tracker.name} failed to finish its run ({_one_line(error)})")


def start_tracker(name: str, options: RunOptions) -> Any:
    """Start a tracker of accelerate, or continue the tracker run that belongs to the run folder."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    project, run = "audiodiff", options.run_id()
    configuration = options.model_dump()
    match name:
        case "wandb":
            tracker = LOGGER_TYPE_TO_CLASS[name](project, id=run, resume="allow")
        case "trackio":
            tracker = LOGGER_TYPE_TO_CLASS[name](project, name=run, resume="allow")
        case _:
            mlflow_run = _mlflow_run(project, run)
            tracker = LOGGER_TYPE_TO_CLASS[name](project, run_id=mlflow_run, run_name=run)
            if mlflow_run is not None:  # mlflow rejects changed parameters, such as a later stopping point
                configuration = {}
    tracker.start()
    tracker.store_init_configuration(configuration)
    return tracker


def _mlflow_run(project: str, name: str) -> str | None:
    """Return the mlflow id of the run with this name, or None."""
    mlflow = importlib.import_module("mlflow")

    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", project)  # accelerate prefers this variable too
    runs = mlflow.search_runs(
        experiment_names=[experiment],
        filter_string=f"attributes.run_name = '{name}'",
        max_results=1,
        output_format="list",
    )
    return runs[0].info.run_id if runs else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
