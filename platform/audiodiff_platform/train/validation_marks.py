"""Marks of checkpoints that wait for validation or are being validated.

A mark is the file `_in_validation/<name>.json` in the run folder. It exists from the time a checkpoint is queued until
its validation has finished. `begun` counts the validation tasks that have started with the checkpoint. `heard` is true
if a task has started since the checkpoint was last queued.
"""

import json
from pathlib import Path
from typing import Any

from audiodiff_platform.mel_data.run_folder import IN_VALIDATION, STATE
from audiodiff_platform.storage import Folder


def in_validation(output: Folder) -> dict[str, int]:
    """Return the number of started validation tasks for each marked checkpoint, by checkpoint name."""
    return {name: mark["begun"] for name, mark in _marks(output).items()}


def queue_for_validation(output: Folder, name: str) -> None:
    """Mark a checkpoint as queued, before its validation task is requested."""
    output.write_json(_mark(name), {"begun": 0, "heard": False})


def validations_not_started(output: Folder) -> list[str]:
    """Return the queued checkpoints that no task has started to validate.

    The worker that queued a checkpoint may have died before it requested the task.
    """
    return [name for name, mark in _marks(output).items() if not mark["heard"]]


def start_validation(output: Folder, name: str) -> int | None:
    """Count the start of a validation task.

    Returns:
        The number of tasks started for the checkpoint, including this task. None if its validation has already
        finished.
    """
    try:
        begun = int(output.read_json(_mark(name))["begun"]) + 1
    except FileNotFoundError:
        return None
    output.write_json(_mark(name), {"begun": begun, "heard": True})
    return begun


def finish_validation(output: Folder, name: str) -> None:
    """Remove the mark of a checkpoint, with or without a validation result."""
    output.remove(_mark(name))


def requeue_validations(output: Folder) -> None:
    """Queue all marked checkpoints again, because the tasks of a killed job died with the job."""
    for name, mark in _marks(output).items():
        output.write_json(_mark(name), {**mark, "heard": False})


def _marks(output: Folder) -> dict[str, dict[str, Any]]:
    """Return the contents of all marks, by checkpoint name."""
    marks = output.read_all(f"{IN_VALIDATION}/*.json")
    return {f"{STATE}/{Path(mark).stem}": json.loads(content) for mark, content in sorted(marks.items())}


def _mark(name: str) -> str:
    return f"{IN_VALIDATION}/{Path(name).name}.json"
