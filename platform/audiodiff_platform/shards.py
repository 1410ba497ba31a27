"""Shards of work on actors: Ray Data places them, and only shard numbers and counts travel through its object store."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import ray.data


class ShardWorker(Protocol):
    """An actor that does whole shards: heavy things are loaded when it is made, `shard` commits one and says what was done."""

    def shard(self, shard: int) -> dict[str, int]: ...


def run_shards(worker: type[ShardWorker], arguments: Sequence[Any], shards: Sequence[int], num_workers: int, gpus: int = 0) -> Iterator[dict[str, int]]:
    """Does `shards` on at most `num_workers` actors made by `worker(*arguments)`; yields the counts of each as it finishes."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a worker's error is told once, by the job
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    size = min(num_workers, len(shards))
    dataset = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map_batches(
        _Placed,
        fn_constructor_args=(worker, tuple(arguments)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        num_gpus=gpus,
    )
    for row in dataset.iter_rows():
        yield {key: int(value) for key, value in row.items()}


class _Placed:
    """The callable that Ray Data wants, around a ShardWorker."""

    def __init__(self, worker: type[ShardWorker], arguments: tuple[Any, ...]) -> None:
        self.worker = worker(*arguments)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (shard,) = batch["shard"].tolist()
        return {key: np.array([value]) for key, value in self.worker.shard(shard).items()}
