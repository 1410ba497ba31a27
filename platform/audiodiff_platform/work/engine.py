"""Execution of shards on Ray Data, or one after another in this process.

Only shard numbers and counts travel through Ray; audio and images do not, except between two stages. A worker looks for
the commit of a shard before it starts the shard, so a shard that Ray schedules twice is done once.

Work with a finisher has two stages on GPUs: the workers hold the GPUs, and finishers on CPUs write and commit what they
hand over, so that no GPU waits for storage. Memory stays bounded: a row between the stages is one shard, Ray Data keeps
the rows in at most half of the object store, and a worker whose rows find no room there waits after two more.

An OSError means that storage failed. The worker returns it as an outcome, and the shard is retried after the other
shards. Any other error ends the job.
"""

import logging
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from threadpoolctl import threadpool_limits

from audiodiff_platform.cluster import connected, cpus_beside, runs_locally, workers_for
from audiodiff_platform.cluster.capacity import Device
from audiodiff_platform.work.outcomes import Outcome
from audiodiff_platform.work.retries import with_retries
from audiodiff_platform.work.shard_runner import HandingRunner, ShardRunner
from audiodiff_platform.work.shard_work import Counts, Record, ShardWork, ShardWorker
from audiodiff_platform.work.worker_runner import FinishRunner, WorkerRunner

__all__ = ["Counts", "Engine", "InProcess", "RayDataEngine", "Record", "ShardWork", "ShardWorker", "engine"]

MAX_ROWS = 10_000  # the driver creates one object per row: larger jobs have several shards per row
STREAM_SHARDS = 16
"""Shards in a row of workers that do several shards at once.

The slots of a worker run empty at the end of a row. Longer rows make this rarer, but leave more work to a worker that
waits for a new node.
"""
MAX_INIT_DEATHS_PER_WORKER = 3
FINISHERS_PER_WORKER = 4
"""Largest number of finishers for each worker on a GPU."""


class Engine(Protocol):
    """An executor of shards."""

    def run(self, work: ShardWork, shards: Sequence[int]) -> Generator[Counts, None, None]:
        """Run each of `shards` once, and yield its counts and its number (`shard`) when it finishes.

        Raises:
            JobError: A worker failed, or storage failed in every attempt at a shard.
        """


@contextmanager
def engine(
    shards: int, num_workers: int | None, device: Device = "auto", *, isolated: bool = False
) -> Iterator[Engine]:
    """Connect to Ray and yield an engine.

    A local run of a single shard uses this process instead of Ray.

    Args:
        shards: Number of shards to run.
        num_workers: Number of parallel workers, or None for one worker on each free GPU or CPU.
        device: Device of the workers.
        isolated: Use Ray even for a single shard, so that the death of a worker does not end this process.
    """
    if shards <= 1 and num_workers in (None, 1) and runs_locally() and not isolated:
        with threadpool_limits(1):  # as in Ray's workers: the number of threads changes the last bits of results
            yield InProcess()
        return
    with connected():
        workers, gpus = workers_for(num_workers, device)
        finishers = min(FINISHERS_PER_WORKER * workers, cpus_beside(workers)) if gpus else 0
        yield RayDataEngine(workers, gpus, finishers)


class InProcess:
    """An engine that runs shards one after another in this process."""

    def run(self, work: ShardWork, shards: Sequence[int]) -> Generator[Counts, None, None]:
        """See `Engine.run`."""
        if shards:
            yield from _with_cleanup(work, with_retries(ShardRunner(work).outcomes, shards))


@dataclass(frozen=True)
class RayDataEngine:
    """An engine that runs shards on Ray Data, in fixed pools of actors.

    Args:
        workers: Number of actors.
        gpus: GPUs of each actor. If 0, each actor has one CPU.
        finishers: Number of actors of the second stage, with one CPU each. If 0, there is one stage.
    """

    workers: int
    gpus: int = 0
    finishers: int = 0

    def run(self, work: ShardWork, shards: Sequence[int]) -> Generator[Counts, None, None]:
        """See `Engine.run`."""
        yield from _with_cleanup(work, with_retries(lambda pending: self._outcomes(work, pending), shards))

    def _outcomes(self, work: ShardWork, shards: Sequence[int]) -> Generator[Outcome, None, None]:
        from ray.data import ActorPoolStrategy, DataContext, from_items

        _quiet_console()
        rows = _guided_rows(shards, self.workers) if work.is_stream else _even_rows(shards)
        workers, finishers = min(self.workers, len(rows)), min(self.finishers, len(shards)) if work.finisher else 0

        def pool(size: int) -> dict[str, Any]:
            return {
                "fn_constructor_args": (work,),
                "compute": ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
            }

        with DataContext.current(_configure(DataContext.get_current().copy(), workers + finishers)):
            data = from_items([{"shards": list(row)} for row in rows], override_num_blocks=len(rows)).flat_map(
                _named(HandingRunner if finishers else ShardRunner, work.worker),
                **pool(workers),
                **self._resources(bool(finishers)),
            )
            if work.finisher and finishers:
                data = data.map(_named(FinishRunner, work.finisher), **pool(finishers), num_cpus=1)
            data.set_name(work.name)
            batches = data.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
            with closing(iter(batches)) as finished:
                for batch in finished:
                    yield from map(Outcome.of, batch.to_pylist())

    def _resources(self, two_stages: bool) -> dict[str, int]:
        """Return the resources of a worker. By itself, Ray Data reserves one CPU with GPUs.

        Beside finishers it reserves none: after the loss of a node, finishers that wait for CPUs could take that of a
        worker whose process is being replaced.
        """
        if not self.gpus:
            return {"num_cpus": 1}
        return {"num_gpus": self.gpus, "num_cpus": 0} if two_stages else {"num_gpus": self.gpus}


def _named(runner: type[WorkerRunner[Any]], worker: type[Any]) -> type[WorkerRunner[Any]]:
    """Return the class of a runner with the name of its worker, which Ray Data and Ray's process titles show."""
    return type(worker.__name__, (runner,), {})


def _even_rows(shards: Sequence[int]) -> list[Sequence[int]]:
    """Divide shards into rows of one shard each, or into MAX_ROWS rows."""
    count = min(len(shards), MAX_ROWS)
    return [shards[first::count] for first in range(count)]


def _guided_rows(shards: Sequence[int], workers: int) -> list[Sequence[int]]:
    """Divide shards into rows for workers that do several shards at once.

    A row holds STREAM_SHARDS shards. The last rows are smaller, so that all workers end at about the same time.
    """
    largest = max(STREAM_SHARDS, -(-len(shards) // MAX_ROWS))
    rows, first = list[Sequence[int]](), 0
    while first < len(shards):
        size = min(largest, max(1, (len(shards) - first) // workers))
        rows.append(shards[first : first + size])
        first += size
    return rows


def _with_cleanup(work: ShardWork, counts: Generator[Counts, None, None]) -> Generator[Counts, None, None]:
    """Yield `counts`, then remove the temporary attempt records of a job without an output folder."""
    with closing(counts):
        try:
            yield from counts
        finally:
            if work.output is None:
                shutil.rmtree(work.attempts_folder().root, ignore_errors=True)


def _configure(context: Any, workers: int) -> Any:
    """Set Ray's `DataContext` so that each row stays one task, and its outcomes and errors reach the driver."""
    context.execution_no_progress_timeout_s = -1  # a shard may take hours, and so may the wait for a node
    context.raise_original_map_exception = True
    context.max_errored_blocks = 0
    context.max_consecutive_actor_init_deaths = MAX_INIT_DEATHS_PER_WORKER * workers
    context.actor_init_retry_on_errors = False
    context.target_max_block_size = 1  # one output block per outcome, so that the driver receives each at once
    context.execution_options.preserve_order = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None
    context.issue_detectors_config.detectors = []
    return context


def _quiet_console() -> None:
    """Keep Ray Data's messages off the terminal. They still go to its log files.

    Errors that end a job reach the driver as exceptions. The others come from the thread of an execution that Ctrl-C
    stopped, which may still read objects after Ray has shut down.
    """
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)
