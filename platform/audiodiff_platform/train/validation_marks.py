"""Marks of checkpoints that wait for validation or are being validated."""

import json
from pathlib import Path
from typing import Any

from audiodiff_platform.mel_data.run_folder import IN_VALIDATION, STATE
from audiodiff_platform.storage import Folder


def in_validation(output: Folder) -> dict[str, int]:
    """The checkpoints that validation has in hand, and how often a task has begun with each."""
    return {name: mark["begun"] for name, mark in _marks(output).items()}


def queue_for_validation(output: Folder, name: str) -> None:
    """Says that validation will have a checkpoint, before it is told so."""
    output.write_json(_mark(name), {"begun": 0, "heard": False})


def validations_not_started(output: Folder) -> list[str]:
    """The checkpoints that were handed over and that no task has begun with: what would have told validation of them may have died before it could."""
    return [name for name, mark in _marks(output).items() if not mark["heard"]]


def start_validation(output: Folder, name: str) -> int | None:
    """Says that a task begins with a checkpoint; gives the how manyth that is, or None where validation is through with it already."""
    try:
        begun = int(output.read_json(_mark(name))["begun"]) + 1
    except FileNotFoundError:
        return None
    output.write_json(_mark(name), {"begun": begun, "heard": True})
    return begun


def finish_validation(output: Folder, name: str) -> None:
    """Says that validation is through with a checkpoint, whether it has a result or not."""
    output.remove(_mark(name))


def requeue_validations(output: Folder) -> None:
    """Hands over again what a killed job had in validation, whose tasks went with it."""
    for name, mark in _marks(output).items():
        output.write_json(_mark(name), {**mark, "heard": False})


def _marks(output: Folder) -> dict[str, dict[str, Any]]:
    marks = output.read_all(f"{IN_VALIDATION}/*.json")
    return {f"{STATE}/{Path(mark).stem}": json.loads(content) for mark, content in sorted(marks.items())}


def _mark(name: str) -> str:
    return f"{IN_VALIDATION}/{Path(name).name}.json"
