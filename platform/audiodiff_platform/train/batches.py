"""Batches of a training worker: read by data workers, moved to the device ahead of training.

The data workers are processes of torch's DataLoader. Data worker d of D in training worker r of R reads the samples
that worker r + R * d of R * D training workers would read. Each data worker thus keeps to its own streams of the data
order (`mel_data/sample_order.py`) and caches few row groups. The samples of a batch do not depend on D.
"""

import itertools
import multiprocessing
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from audiodiff_core.training import TrainBatch
from audiodiff_platform.mel_data.sample_order import DataOrder

BATCHES_READ_AHEAD = 4  # per data worker


@dataclass(frozen=True)
class Share:
    """Share of a worker in each batch: every `world`-th sample.

    Args:
        batch_size: Samples in a batch, over all workers.
        rank: Rank of the worker.
        world: Number of workers.
    """

    batch_size: int
    rank: int
    world: int

    def numbers(self, first: int) -> range:
        """Return the sample numbers of the worker in the batch that starts at sample number `first`."""
        return range(first + (self.rank - first) % self.world, first + self.batch_size, self.world)

    def part(self, index: int, count: int) -> "Share":
        """Return the share of data worker `index` of `count` in this share."""
        return Share(self.batch_size, self.rank + self.world * index, self.world * count)


class Reads(IterableDataset[TrainBatch | None]):
    """Endless batches of a share. In a data worker, its part of each batch, or None if the part is empty.

    Args:
        open_order: Function that opens the data order. Data workers call it in their own processes.
        share: Share of the training worker.
        first: Sample number at which the first batch starts.
    """

    def __init__(self, open_order: Callable[[], DataOrder], share: Share, first: int) -> None:
        self.open_order, self.share, self.first = open_order, share, first

    def __iter__(self) -> Iterator[TrainBatch | None]:
        info = get_worker_info()
        share = self.share if info is None else self.share.part(info.id, info.num_workers)
        order = self.open_order()
        for first in itertools.count(self.first, share.batch_size):
            numbers = share.numbers(first)
            yield order.batch(numbers) if numbers else None


class Batches:
    """Endless batches of a worker, on its device.

    On a GPU, a batch is copied and prepared on a side stream while the previous step runs.

    Args:
        reads: Samples to read.
        data_workers: Processes that read. With 0, this process reads.
        device: Device of the worker.
        prepare: Function that is applied to each batch on the device.

    Attributes:
        waited_s: Seconds for which training has waited for data.
    """

    def __init__(
        self, reads: Reads, data_workers: int, device: torch.device, prepare: Callable[[TrainBatch], TrainBatch]
    ) -> None:
        on_gpu = device.type == "cuda"
        process_options: dict[str, Any] = (
            {"prefetch_factor": BATCHES_READ_AHEAD, "multiprocessing_context": _forking()} if data_workers else {}
        )
        self.loader: DataLoader[TrainBatch | None] = DataLoader(
            reads,
            batch_size=None,
            num_workers=data_workers,
            collate_fn=_unchanged,
            pin_memory=on_gpu,
            generator=torch.Generator(),  # otherwise the loader draws from the generator of this process
            **process_options,
        )
        self.device, self.prepare = device, prepare
        self.waited_s = 0.0
        self._parts = iter(self.loader)
        self._parts_per_batch = max(1, data_workers)
        self._batches = self._on_side_stream() if on_gpu else self._in_turn()

    def __iter__(self) -> Iterator[TrainBatch]:
        return self._batches

    def close(self) -> None:
        """End the data workers."""
        self._batches.close()
        del self._parts

    def _in_turn(self) -> Generator[TrainBatch, None, None]:
        while True:
            yield self._next()

    def _on_side_stream(self) -> Generator[TrainBatch, None, None]:
        stream = torch.cuda.Stream(self.device)
        while True:
            with torch.cuda.stream(stream):
                batch = self._next()
                ready = stream.record_event()
            training = torch.cuda.current_stream(self.device)
            training.wait_event(ready)
            batch.record_stream(training)
            # The caller queues its step and comes back while the GPU runs it.
            yield batch

    def _next(self) -> TrainBatch:
        """Read a batch and move it to the device. The order of its samples does not depend on the data workers."""
        began = time.perf_counter()
        parts = [next(self._parts) for _ in range(self._parts_per_batch)]
        self.waited_s += time.perf_counter() - began
        return self.prepare(TrainBatch.joined([part.to(self.device) for part in parts if part is not None]))


def _forking() -> BaseContext:
    """Return a context that forks all data workers from one process, which imports the modules once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _unchanged(batch: Any) -> Any:
    return batch
