"""Batches of a worker, read ahead by a thread."""

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
    """Which samples of each batch are a worker's: every `world`-th, from `rank` on."""

    batch_size: int
    rank: int
    world: int

    def numbers(self, first: int) -> list[int]:
        """Of the batch that begins with sample `first`."""
        return [number for number in range(first, first + self.batch_size) if number % self.world == self.rank]


def read_ahead(
    order: DataOrder, first: int, share: Share, ready: Callable[[TrainBatch], TrainBatch]
) -> Generator[TrainBatch, None, None]:
    """A worker's share of each batch from sample `first` on, made `ready`, without end; a thread reads the next ones meanwhile."""

    def read(start: int) -> TrainBatch:
        return ready(order.batch(share.numbers(start)))

    with ThreadPoolExecutor(1, "reads-ahead") as reader:
        ahead: deque[Future[TrainBatch]] = deque()
        try:
            for start in itertools.count(first, share.batch_size):
                ahead.append(reader.submit(read, start))
                if len(ahead) > BATCHES_READ_AHEAD:
                    yield ahead.popleft().result()
        finally:
            reader.shutdown(cancel_futures=True)
