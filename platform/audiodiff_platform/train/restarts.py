"""Count of worker group starts, to end a training run that fails repeatedly at one checkpoint.

`_starts.json` in the run folder holds the newest checkpoint, the number of workers, the number of starts from this
checkpoint, and the last error. The count starts again after a new checkpoint, and after a change of the number of
workers (nodes joined or left).
"""

from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.run_folder import STARTS
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import newest_checkpoint

MAX_RESTARTS = 3


def count_start(output: Folder, workers: int) -> str | None:
    """Count a start of the worker group.

    Args:
        output: The run folder.
        workers: Number of workers in the group.

    Returns:
        The reason to end training if the restarts from this checkpoint are used up, else None.
    """
    position = {"checkpoint": newest_checkpoint(output), "workers": workers}
    record = output.read_json(STARTS) if output.exists(STARTS) else {}
    if {name: record.get(name) for name in position} != position:
        record = {**position, "starts": 0, "error": None}
    if record["starts"] > MAX_RESTARTS:
        output.remove(STARTS)  # the next run of the job gets all its restarts
        return record["error"] or f"workers died after each of {record['starts']} starts from the same checkpoint"
    output.write_json(STARTS, {**record, "starts": record["starts"] + 1})
    return None


def end_at_next_start(output: Folder, workers: int, reason: str) -> None:
    """Make `count_start` return `reason` to all workers at the next start from the newest checkpoint.

    Args:
        output: The run folder.
        workers: Number of workers in the group.
        reason: Reason to end training.
    """
    position = {"checkpoint": newest_checkpoint(output), "workers": workers}
    output.write_json(STARTS, {**position, "starts": MAX_RESTARTS + 1, "error": reason})


def record_error(output: Folder, error: Exception) -> None:
    """Record the error of a worker, which `count_start` returns as the reason to end training."""
    try:
        record = output.read_json(STARTS)
        if record["error"] is None:  # keep the first error: it causes the errors of the other workers
            output.write_json(STARTS, {**record, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
    except OSError as failure:
        say(f"the error of a worker could not be recorded ({failure})")
