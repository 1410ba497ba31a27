"""Batches of a worker, which a thread reads ahead of training."""

import itertools
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from audiodiff_core.training import TrainBatch
from audiodiff_platform.mel_data.sample_order import DataOrder

BATCHES_READ_AHEAD = 4


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

    def numbers(self, first: int) -> list[int]:
        """Return the sample numbers of the worker in the batch that starts at sample number `first`."""
        return [number for number in range(first, first + self.batch_size) if number % self.world == self.rank]


def read_ahead(
    order: DataOrder, first: int, share: Share, prepare: Callable[[TrainBatch], TrainBatch]
) -> Generator[TrainBatch, None, None]:
    """Yield the batches of a worker endlessly, while a thread reads and prepares the next batches.

    Args:
        order: Data order of the dataset.
        first: Sample number at which the first batch starts.
        share: Share of the worker in each batch.
        prepare: Function that the thread applies to each batch.
    """

    def read(start: int) -> TrainBatch:
        return prepare(order.batch(share.numbers(start)))

    with ThreadPoolExecutor(1, "reads-ahead") as reader:
        pending: deque[Future[TrainBatch]] = deque()
        try:
            for start in itertools.count(first, share.batch_size):
                pending.append(reader.submit(read, start))
                if len(pending) > BATCHES_READ_AHEAD:
                    yield pending.popleft().result()
        finally:
            reader.shutdown(cancel_futures=True)
