"""Writer of checkpoints, which runs in a thread while training continues: on rank 0, with the help of other workers."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from safetensors import SafetensorError

from audiodiff_platform.entry.errors import LeaseLostError
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.storage import Folder
from audiodiff_platform.storage.lease import require_token
from audiodiff_platform.train.checkpoints import put_checkpoint, remove_superseded
from audiodiff_platform.train.learner import Snapshot
from audiodiff_platform.train.run_log import RunLog
from audiodiff_platform.train.run_options import RunOptions
from audiodiff_platform.train.validation_marks import in_validation, queue_for_validation

Validate = Literal["never", "if free", "always"]
"""Queue a checkpoint for validation never, if no other checkpoint is in validation, or always."""

RETRY_PAUSES_S = (1.0, 4.0, 16.0)  # between attempts to write a checkpoint


@dataclass(frozen=True)
class Written:
    """Outcome of writing a checkpoint.

    Args:
        name: Name of the checkpoint in the run folder.
        queued: The checkpoint waits for its validation.
        failure: Reason if the checkpoint could not be written, else None.
    """

    name: str
    queued: bool = False
    failure: str | None = None


class CheckpointWriter:
    """Writer of the log and the checkpoints of a run, one checkpoint at a time.

    Args:
        options: Options of the run.
        log: Log of the run, which is written with each checkpoint.
        token: Token of the lease of the run folder, without which no checkpoint is written. None if no lease is held.
    """

    def __init__(self, options: RunOptions, log: RunLog, token: str | None) -> None:
        self.options, self.log, self.token = options, log, token
        self.output = Folder(options.output_dir)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Written] | None = None

    def start(self, name: str, snapshot: Snapshot, progress: Mapping[str, Any], validate: Validate) -> None:
        """Start to write a checkpoint, on rank 0. The previous one must have been collected with `poll` or `wait`.

        Args:
            name: Name of the checkpoint in the run folder.
            snapshot: The state.
            progress: JSON values to record in the checkpoint.
            validate: Whether to queue the checkpoint for validation.
        """
        assert self._writing is None, "a checkpoint is being written"
        self._writing = self._thread.submit(self._write, name, snapshot, dict(progress), validate)

    def assist(self, snapshot: Snapshot) -> None:
        """Start to help rank 0 to write its checkpoint, on the other workers."""
        self._thread.submit(snapshot.assist)

    @property
    def busy(self) -> bool:
        """True while a checkpoint is being written."""
        return self._writing is not None and not self._writing.done()

    def poll(self) -> Written | None:
        """Return the outcome if the checkpoint was written since the last call, else None."""
        return self.wait() if self._writing is not None and self._writing.done() else None

    def wait(self) -> Written | None:
        """Wait for the checkpoint that is being written and return its outcome. None if there is none."""
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def close(self) -> None:
        """Wait until nothing is being written."""
        self._thread.shutdown(wait=True)

    def _write(self, name: str, snapshot: Snapshot, progress: dict[str, Any], validate: Validate) -> Written:
        try:
            return self._written(name, snapshot, progress, validate)
        finally:
            snapshot.finish()

    def _written(self, name: str, snapshot: Snapshot, progress: dict[str, Any], validate: Validate) -> Written:
        """Write the log and a checkpoint, queue it for validation, and remove the checkpoints that it replaces.

        A failed write is retried, since the disk may be full or the store unreachable only for a while.
        """
        queued = False
        for pause in (*RETRY_PAUSES_S, None):
            try:
                if self.token is not None:
                    require_token(self.output, self.token)
                self.log.flush()
                put_checkpoint(self.output, name, partial(snapshot.write, name), progress)
                if validate == "always" or (validate == "if free" and not in_validation(self.output)):
                    queue_for_validation(self.output, name)
                    queued = True
                remove_superseded(self.output, self.options.checkpoints_kept, self.options.best_metric)
            except LeaseLostError as error:
                return Written(name, failure=str(error))
            except (OSError, RuntimeError, SafetensorError) as error:
                # torch reports a failed write as RuntimeError, safetensors as SafetensorError.
                failure = f"checkpoint {self.output.uri}/{name} cannot be written ({' '.join(str(error).split())})"
                if pause is None:
                    remedy = "fix this, then run the same command again to resume from the previous checkpoint"
                    return Written(name, failure=f"{failure}: {remedy}")
                say(f"{failure}: retrying in {pause:.0f} s")
                time.sleep(pause)
            else:
                break
        return Written(name, queued)
