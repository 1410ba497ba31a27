"""Checkpoints of a training run: writing, finding, reading and removing them.

    OUTPUT_DIR/state/step-<step>-<attempt>/   weights, averages and optimizers: whole (`learner.py`), or the shards of
                                              each worker (`sharded_checkpoints.py`); progress.json, written last:
                                              step, samples, seconds, and the size and digest of each other file
    OUTPUT_DIR/validation/<step>.json         validation metrics of the checkpoint (`validation/`)
    OUTPUT_DIR/_in_validation/<name>.json     mark of a checkpoint in validation (`validation_marks.py`)

A checkpoint is whole if progress.json exists and all files have the sizes recorded in it. A kill during writing leaves
a checkpoint that is not whole. Training then resumes from the whole checkpoint before it. The workers of a killed job
run on for some seconds. The attempt in the name keeps their files apart from the files of the next job.

Ray Train receives only the names of checkpoints. Checkpoints are read and written through `Folder`, on a local disk, S3
and GCS alike.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from audiodiff_platform.mel_data.run_folder import PROGRESS, STATE, VALIDATION_RESULTS
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.commits import file_sha256
from audiodiff_platform.train.validation_marks import in_validation

CHECKPOINT_FORMAT_VERSION = 5

FileRecord = Mapping[str, Any]
"""Size (`bytes`) and digest (`sha256`) of a file of a checkpoint."""


def checkpoint_name(step: int, attempt: str) -> str:
    """Return the name of a checkpoint in the run folder."""
    return f"{STATE}/step-{step:09d}-{attempt}"


def step_of(name: str) -> int:
    """Return the step in the name of a checkpoint."""
    return int(name.rsplit("/", 1)[-1].split("-")[1])


def file_record(file: Path) -> FileRecord:
    """Return the size and the digest of a local file."""
    return {"bytes": file.stat().st_size, "sha256": file_sha256(file)}


def put_checkpoint(
    output: Folder, name: str, save: Callable[[Path], Mapping[str, FileRecord] | None], progress: dict[str, Any]
) -> None:
    """Write a checkpoint, unless a whole checkpoint of this name exists.

    If the process is killed, readers ignore the incomplete checkpoint.

    Args:
        output: The run folder.
        name: Name of the checkpoint in the run folder.
        save: Function that writes the files of the checkpoint into a local folder. It may return records of files by
            name. The files of these records may also be in the checkpoint already.
        progress: JSON values to record in progress.json.

    Raises:
        OSError: The disk is full or the store is unreachable.
    """
    if name in whole_checkpoints(output):
        return
    with output.scratch() as scratch:
        (folder := scratch / "checkpoint").mkdir()
        files = dict(save(folder) or {})
        files |= {file.name: file_record(file) for file in folder.iterdir() if file.name not in files}
        content = json.dumps({"format_version": CHECKPOINT_FORMAT_VERSION, **progress, "files": files})
        if output.is_local:
            (folder / PROGRESS).write_text(content)
            output.remove(name)
            target = Path(output.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder, target)
        else:
            output.upload(folder, name)
            output.write(f"{name}/{PROGRESS}", content.encode())


def checkpoint_progress(output: Folder, name: str) -> dict[str, Any]:
    """Read progress.json of a checkpoint.

    Raises:
        ValueError: The checkpoint has another format version.
    """
    progress = output.read_json(f"{name}/{PROGRESS}")
    if progress.get("format_version") != CHECKPOINT_FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {output.uri}/{name} was written by another version of audiodiff: "
            "use that version, or another folder"
        )
    return progress


@contextmanager
def local_checkpoint(output: Folder, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Provide a whole checkpoint as a local folder, with its progress; download it from an object store."""
    progress = checkpoint_progress(output, name)
    if output.is_local:
        yield Path(output.path(name)), progress
        return
    with output.scratch() as scratch:
        for file in progress["files"]:
            output.fetch(f"{name}/{file}", scratch).rename(scratch / file)
        yield scratch, progress


def whole_checkpoints(output: Folder) -> list[str]:
    """Return the names of the whole checkpoints in the run folder, in the order of their steps."""
    names = []
    for progress_file in output.names(f"{STATE}/*/{PROGRESS}"):
        name = progress_file.removesuffix(f"/{PROGRESS}")
        try:
            files = checkpoint_progress(output, name)["files"]
            if all(output.entry(f"{name}/{file}").size == record["bytes"] for file, record in files.items()):
                names.append(name)
        except (ValueError, KeyError, FileNotFoundError):  # cut off by a kill, or being removed now
            continue
    return sorted(names, key=lambda name: (step_of(name), name))


def newest_checkpoint(output: Folder) -> str | None:
    """Return the whole checkpoint with the most steps, or None."""
    return next(reversed(whole_checkpoints(output)), None)


def damaged_files(folder: Path, progress: Mapping[str, Any]) -> list[str]:
    """Return the names of the files of a local checkpoint that do not match their digests."""
    return [file for file, record in progress["files"].items() if file_sha256(folder / file) != record["sha256"]]


def validation_results(output: Folder) -> dict[int, dict[str, float]]:
    """Return the validation metrics by step."""
    contents = output.read_all(f"{VALIDATION_RESULTS}/*.json")
    return {int(Path(name).stem): json.loads(content) for name, content in sorted(contents.items())}


def best_checkpoint(output: Folder, metric: str) -> str | None:
    """Return the whole checkpoint with the lowest finite value of a validation metric, or None.

    The Fréchet distance decreases with the number of samples. For `metric` "frechet", only distances with as many
    samples as the latest distance are compared.
    """
    results = {
        step: values
        for step, values in validation_results(output).items()
        if math.isfinite(values.get(metric, math.nan))
    }
    if metric == "frechet" and results:
        samples = results[max(results)]["n_candidate"]
        results = {step: values for step, values in results.items() if values["n_candidate"] == samples}
    validated = [name for name in whole_checkpoints(output) if step_of(name) in results]
    return min(validated, key=lambda name: results[step_of(name)][metric], default=None)


def remove_superseded(output: Folder, kept: int, metric: str) -> None:
    """Remove the checkpoints that are no longer needed.

    The newest `kept` whole checkpoints, the best checkpoint by `metric` and the checkpoints in validation are kept. A
    checkpoint that is not whole is removed only if a whole checkpoint has more steps. Otherwise, a worker may be
    writing it.
    """
    names = whole_checkpoints(output)
    if not names:
        return
    needed = {*names[-kept:], *in_validation(output), best_checkpoint(output, metric)}
    present = {file.rpartition("/")[0] for file in output.names(f"{STATE}/step-*/*")}
    for name in present - needed:
        if name in names or step_of(name) < step_of(names[-1]):
            output.remove(name)
