"""Experiment trackers (accelerate's), which may be out of reach without ending the training."""

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.run_folder import VALIDATION_RESULTS
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import checkpoint_progress, newest_checkpoint, validation_results
from audiodiff_platform.train.options import RunOptions, TrackerName

VALIDATED_STEP = "validated_step"


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Raises ValueError where a tracker's package is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        extras = ",".join(missing)
        raise ValueError(
            f"report_to {','.join(names)}: {extras} cannot be imported: pip install 'audiodiff[{extras}]', or report_to none"
        )


def tell_last_validations(options: RunOptions) -> None:
    """Hands what validation has found since the last checkpoint to the trackers, when the workers and validation have ended."""
    names = [name for name in options.report_to if name != "tensorboard"]
    output = Folder(options.output_dir)
    last = newest_checkpoint(output)
    if last is None or not names:
        return
    progress, results = checkpoint_progress(output, last), validation_results(output)
    for name in names:
        try:
            tracker = start_tracker(name, options)
        except Exception as error:  # as in took
            say(
                f"{name} cannot be told of the last validations ({' '.join(str(error).split())}): {output.uri}/{VALIDATION_RESULTS} has them"
            )
            continue
        tell(tracker, results, set(progress["validations_told"].get(name, ())), progress["step"])
        finish_tracker(tracker)


def tell(tracker: Any, results: Mapping[int, Mapping[str, float]], told: set[int], step: int) -> set[int]:
    """Tells what is new in the steps just after `step`, where the log is, with the step that was validated: wandb takes nothing at one that is past.

    Gives the validated steps that the tracker now knows of: where it took nothing, the rest is left for the next time.
    """
    known = set(told)
    for told_at, validated in enumerate(sorted(results.keys() - told), step + 1):
        if not took(tracker, {**results[validated], VALIDATED_STEP: validated}, told_at):
            break
        known.add(validated)
    return known


def took(tracker: Any, values: Mapping[str, float], step: int) -> bool:
    """Hands values to a tracker; whether it took them. Clients raise errors of many kinds, none of which is worth a training."""
    try:
        tracker.log(dict(values), step=step)
    except Exception as error:
        say(
            f"{tracker.name} takes nothing at step {step} ({' '.join(str(error).split())}): the run folder has it, and training goes on"
        )
        return False
    return True


def finish_tracker(tracker: Any) -> None:
    try:
        tracker.finish()
    except Exception as error:  # as in took
        say(f"{tracker.name} did not end its run ({' '.join(str(error).split())})")


def start_tracker(name: str, options: RunOptions) -> Any:
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
            told = (
                told if earlier is None else {}
            )  # mlflow refuses another value of what a run was told, such as a later stopping point
    tracker.start()
    tracker.store_init_configuration(told)
    return tracker


def _mlflow_run(project: str, name: str) -> str | None:
    """The id of the run of that name, as mlflow knows runs by ids of its own."""
    mlflow = importlib.import_module("mlflow")

    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", project)  # by which accelerate goes first
    runs = mlflow.search_runs(
        experiment_names=[experiment],
        filter_string=f"attributes.run_name = '{name}'",
        max_results=1,
        output_format="list",
    )
    return runs[0].info.run_id if runs else None
