"""Checkpoints of FSDP runs: each worker writes and reads its own shards.

    OUTPUT_DIR/state/step-<step>-<attempt>/shard-<rank>-of-<workers>.safetensors

The files are in the safetensors format of `torch.distributed.checkpoint`, which reads them into any number of workers,
sharded or not. They hold tensors and JSON only, and no pickle as the default format of `torch.distributed.checkpoint`
does. Each file states the offsets of its shards. The names of the tensors are those of `TrainState.tensors`.

Each worker writes from a thread, while training continues. Rank 0 leads: it tells the other threads where to put their
files, collects the records of the files, and asks again after a failure. The threads communicate in a process group of
their own.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from audiodiff_core.files.weights import StateDict
from audiodiff_core.training import TrainState
from audiodiff_platform.mel_data.run_folder import EMA_WEIGHTS
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import FileRecord, file_record

SHARDS = "shard-*.safetensors"
WRITE_TIMEOUT = timedelta(days=1)
"""Longest time that a thread waits for the slowest worker to write its shards."""

# Each worker reads and writes alone, without collectives, so that a failure of one worker blocks no other worker.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


class ShardWriters:
    """Process group of the threads that write shards. All workers create it together.

    Args:
        output: The run folder.
    """

    def __init__(self, output: Folder) -> None:
        self.output = output
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=WRITE_TIMEOUT)

    def share(self, target: str | None) -> str | None:
        """Send `target` of rank 0 to all workers, and return it."""
        targets = [target]
        dist.broadcast_object_list(targets, src=0, group=self._group)
        return targets[0]

    def put(self, tensors: StateDict, target: str) -> list[dict[str, FileRecord] | str]:
        """Put the shards of this worker into the subfolder `target` of the run folder, on all workers together.

        Returns:
            For each worker, the record of its file by name, or the reason of its failure.
        """
        outcomes: list[Any] = [None] * self.workers
        dist.all_gather_object(outcomes, self._outcome(tensors, target), group=self._group)
        return outcomes

    def _outcome(self, tensors: StateDict, target: str) -> dict[str, FileRecord] | str:
        try:
            with self.output.scratch() as scratch:
                file = write_shards(tensors, scratch, self.rank, self.workers)
                records = {file.name: file_record(file)}
                if self.output.is_local:
                    self.output.move_in(file, f"{target}/{file.name}")
                else:
                    self.output.upload(scratch, target)
                return records
        except Exception as error:
            return f"worker {self.rank}: {type(error).__name__}: {error}"


class ShardSnapshot:
    """Copy of the shards of this worker in host memory. See `learner.Snapshot`.

    Args:
        writers: Writers of the group.
        tensors: The copy, by the names of `TrainState.tensors`.
    """

    def __init__(self, writers: ShardWriters, tensors: StateDict) -> None:
        self.writers, self.tensors = writers, tensors

    def write(self, name: str, folder: Path) -> dict[str, FileRecord]:
        """Write the shards of all workers.

        Raises:
            OSError: A worker cannot write its shards.
        """
        output = self.writers.output
        target = os.path.relpath(folder, output.root) if output.is_local else name
        self.writers.share(target)
        outcomes = self.writers.put(self.tensors, target)
        if failures := [outcome for outcome in outcomes if isinstance(outcome, str)]:
            raise OSError("; ".join(failures))
        return {file: record for outcome in outcomes if isinstance(outcome, dict) for file, record in outcome.items()}

    def assist(self) -> None:
        """Write the shards of this worker whenever rank 0 writes, until rank 0 calls `finish`."""
        while (target := self.writers.share(None)) is not None:
            self.writers.put(self.tensors, target)

    def finish(self) -> None:
        """End `assist` on the other workers."""
        self.writers.share(None)


def write_shards(tensors: Mapping[str, torch.Tensor], folder: Path, rank: int, workers: int) -> Path:
    """Write the shards of this worker, and on rank 0 also the tensors that are not sharded, into an empty folder.

    Returns:
        The written file.

    Raises:
        OSError: The disk is full.
    """
    own = {name: tensor for name, tensor in tensors.items() if rank == 0 or isinstance(tensor, DTensor)}
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    writer.per_thread_copy_ahead = 0  # The tensors are on the host: no CUDA stream of this thread is needed.
    with _raised_cause():
        save(own, storage_writer=writer, no_dist=True)
    (file,) = folder.iterdir()
    return file.rename(folder / f"shard-{rank:05d}-of-{workers:05d}.safetensors")


def has_shards(folder: Path) -> bool:
    """Return True if a local checkpoint was written by an FSDP run."""
    return any(folder.glob(SHARDS))


def load_shards(state: TrainState, folder: Path) -> None:
    """Load a local checkpoint of an FSDP run, of any number of workers. Each worker reads its own part."""
    moments = any(name.startswith("optimizer.") for name in _saved_tensors(folder))
    state.load_tensors(lambda tensors: _read(folder, tensors), moments=moments)


def averaged_weights(folder: Path) -> StateDict:
    """Read the averaged weights of a local checkpoint, of an FSDP run or any other run, as full tensors.

    Raises:
        FileNotFoundError: The checkpoint was removed.
    """
    if not has_shards(folder):
        return load_file(folder / EMA_WEIGHTS)
    prefix = "average."
    saved = {name: entry for name, entry in _saved_tensors(folder).items() if name.startswith(prefix)}
    weights = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in saved.items()}
    _read(folder, weights)
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


def _saved_tensors(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Return shapes and types of the tensors of a local checkpoint."""
    entries = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def _read(folder: Path, tensors: StateDict) -> None:
    """Overwrite tensors in place with the tensors of a local checkpoint."""
    with _raised_cause():
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


@contextmanager
def _raised_cause() -> Iterator[None]:
    """Raise the cause of a CheckpointException, which is not an Exception itself."""
    try:
        yield
    except CheckpointException as error:
        ((cause, _),) = error.failures.values()
        raise cause from None
