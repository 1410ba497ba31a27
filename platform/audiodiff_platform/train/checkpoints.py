"""Checkpoints of a training run: how one becomes whole, which one a run goes on from, which ones are kept.

    OUTPUT_DIR/state/step-<step>-<attempt>/   what the learner saved (`training_loop.Learner`): weights, their average, optimizers
                                              progress.json, last: step, samples, seconds; size and digest of each other file
    OUTPUT_DIR/validation/<step>.json         what validation made of it (`validation.py`)
    OUTPUT_DIR/_in_validation/<name>.json     while validation has a checkpoint in hand: how often a task has begun with it, and whether one has
                                              since the checkpoint was last handed over

A checkpoint is whole when progress.json is there and the files have the sizes that it states: a kill in the middle leaves one that
is passed over for the one before. Workers of a killed job live on for seconds; the attempt in the name keeps their files apart.
Ray Train is told of checkpoints, but stores none: on a local disk, S3 and GCS alike they go through `Folder`.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.run_folder import PROGRESS, STATE, VALIDATION_RESULTS
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.commits import file_sha256
from audiodiff_platform.train.validation_marks import in_validation

CHECKPOINT_FORMAT_VERSION = 4


def checkpoint_name(step: int, attempt: str) -> str:
    return f"{STATE}/step-{step:09d}-{attempt}"


def step_of(name: str) -> int:
    """The step that a checkpoint's name states."""
    return int(name.rsplit("/", 1)[-1].split("-")[1])


def put_checkpoint(output: Folder, name: str, save: Callable[[Path], None], progress: dict[str, Any]) -> None:
    """Makes what `save` writes to a local folder the checkpoint `name`, whole or not at all; one that is whole already stays."""
    if name in whole_checkpoints(output):
        return
    with output.scratch() as scratch:
        (folder := scratch / "checkpoint").mkdir()
        save(folder)
        files = {file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in folder.iterdir()}
        mark = json.dumps({"format_version": CHECKPOINT_FORMAT_VERSION, **progress, "files": files})
        if output.is_local:
            (folder / PROGRESS).write_text(mark)
            output.remove(name)
            target = Path(output.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder, target)
        else:
            for file in list(folder.iterdir()):
                output.move_in(file, f"{name}/{file.name}")
            output.write(f"{name}/{PROGRESS}", mark.encode())


def checkpoint_progress(output: Folder, name: str) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    progress = output.read_json(f"{name}/{PROGRESS}")
    if progress.get("format_version") != CHECKPOINT_FORMAT_VERSION:
        raise ValueError(f"checkpoint {output.uri}/{name} was written by another version of audiodiff")
    return progress


@contextmanager
def local_checkpoint(output: Folder, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A whole checkpoint as a local folder, with its progress."""
    progress = checkpoint_progress(output, name)
    if output.is_local:
        yield Path(output.path(name)), progress
        return
    with output.scratch() as scratch:
        for file in progress["files"]:
            output.fetch(f"{name}/{file}", scratch).rename(scratch / file)
        yield scratch, progress


def whole_checkpoints(output: Folder) -> list[str]:
    """The whole checkpoints, as names in the run folder, the furthest in training last."""
    whole = []
    for mark in output.names(f"{STATE}/*/{PROGRESS}"):
        name = mark.removesuffix(f"/{PROGRESS}")
        try:
            files = checkpoint_progress(output, name)["files"]
            if all(output.entry(f"{name}/{file}").size == stated["bytes"] for file, stated in files.items()):
                whole.append(name)
        except (ValueError, KeyError, FileNotFoundError):  # cut off by a kill, or just being removed
            continue
    return sorted(whole, key=lambda name: (step_of(name), name))


def newest_checkpoint(output: Folder) -> str | None:
    """The whole checkpoint of the most steps; None where there is none."""
    return next(reversed(whole_checkpoints(output)), None)


def soundest_checkpoint(output: Folder) -> str | None:
    """The newest checkpoint whose files have the digests that they were written with: damaged ones are passed over, and said."""
    for name in reversed(whole_checkpoints(output)):
        with local_checkpoint(output, name) as (folder, progress):
            damaged = [
                file for file, stated in progress["files"].items() if file_sha256(folder / file) != stated["sha256"]
            ]
        if not damaged:
            return name
        say(f"checkpoint {output.uri}/{name} is damaged ({', '.join(damaged)}): going on from the one before")
    return None


def validation_results(output: Folder) -> dict[int, dict[str, float]]:
    """What validation found, by step."""
    contents = output.read_all(f"{VALIDATION_RESULTS}/*.json")
    return {int(Path(name).stem): json.loads(content) for name, content in sorted(contents.items())}


def best_checkpoint(output: Folder, figure: str) -> str | None:
    """The whole checkpoint with the lowest `figure` of validation; None where none has a finite one (not every validation finds every figure).

    A Fréchet distance is the larger the fewer samples it is taken from: only those of as many as the latest are compared.
    """
    found = {
        step: values
        for step, values in validation_results(output).items()
        if math.isfinite(values.get(figure, math.nan))
    }
    if figure == "frechet" and found:
        samples = found[max(found)]["n_candidate"]
        found = {step: values for step, values in found.items() if values["n_candidate"] == samples}
    validated = [name for name in whole_checkpoints(output) if step_of(name) in found]
    return min(validated, key=lambda name: found[step_of(name)][figure], default=None)


def remove_superseded(output: Folder, kept: int, figure: str) -> None:
    """Removes the checkpoints that are neither among the last `kept` nor the best by `figure` nor in validation, and what is older and not whole."""
    whole = whole_checkpoints(output)
    if not whole:
        return
    keep = {*whole[-kept:], *in_validation(output), best_checkpoint(output, figure)}
    present = {file.rpartition("/")[0] for file in output.names(f"{STATE}/step-*/*")}
    for name in present - keep:
        if name in whole or step_of(name) < step_of(whole[-1]):
            output.remove(name)
