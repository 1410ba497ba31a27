"""Starts of a group of workers from the same checkpoint: a training that fails there again and again is given up.

`_starts.json` in the run folder holds the newest checkpoint, the number of workers, the number of starts from there, and
the last error. A new checkpoint or another number of workers (nodes that came or went) starts the count anew.
"""

from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.run_folder import STARTS
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import newest_checkpoint

FAILURES_SURVIVED = 3


def count_start(output: Folder, workers: int) -> str | None:
    """Count a start of the group -> the reason for which training is given up, or None."""
    place = {"checkpoint": newest_checkpoint(output), "workers": workers}
    record = output.read_json(STARTS) if output.exists(STARTS) else {}
    if {name: record.get(name) for name in place} != place:
        record = {**place, "starts": 0, "error": None}
    if record["starts"] > FAILURES_SURVIVED:
        output.remove(STARTS)  # the next run of the job may try as often
        return record["error"] or f"workers died at {record['starts']} starts from the same checkpoint"
    output.write_json(STARTS, {**record, "starts": record["starts"] + 1})
    return None


def record_error(output: Folder, error: Exception) -> None:
    """Record the error of a worker, which `count_start` returns when training is given up."""
    try:
        record = output.read_json(STARTS)
        if record["error"] is None:  # others fail for the lack of the first
            output.write_json(STARTS, {**record, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
    except OSError as failure:
        say(f"the error of a worker could not be recorded ({failure})")
