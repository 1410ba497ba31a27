"""Execution of shards on Ray Data, or one after another in this process.

Only shard numbers and counts travel through Ray; audio and images do not. A worker looks for the commit of a shard
before it starts the shard, so a shard that Ray schedules twice is done once.

An OSError means that storage failed. The worker returns it as an outcome, and the shard is retried after the other
shards. Any other error ends the job.
"""

import json
import logging
import shutil
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from threadpoolctl import threadpool_limits

from audiodiff_platform.cluster import connected, runs_locally, workers_for
from audiodiff_platform.cluster.capacity import Device
from audiodiff_platform.entry.errors import JobError, LeaseLostError, one_line
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.scratch import remove_abandoned
from audiodiff_platform.work.attempts import Attempts, CommittedError
from audiodiff_platform.work.retries import Outcome, with_retries

MAX_ROWS = 10_000  # the driver creates one object per row: larger jobs have several shards per row
MAX_INIT_DEATHS_PER_WORKER = 3

Record = Mapping[str, Any]
"""JSON values of the commit record of a shard. `parts` maps the name of each file in the folder to its SHA-256."""
Counts = Mapping[str, Any]


class ShardWorker(Protocol):
    """A worker that processes whole shards. Its constructor loads the models."""

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Write the files of a shard and return the record that the engine commits.

        Args:
            shard: Number of the shard.
            attempts: Earlier attempts at the shard, in which the worker marks the item in progress.
        """


@dataclass(frozen=True)
class ShardWork:
    """A job that is done shard by shard.

    Args:
        name: Name of the job in Ray's dashboard.
        worker: Class of the workers.
        arguments: Constructor arguments of the class.
        output: URI of the folder that holds the commits, or None to commit nothing.
        counts: Converts the record of a shard to its counts, as JSON values for progress reports.
        lease: Token and generation of the lease of `output`. Each commit checks the token and records the generation.
        run: Unique name of this run. It names the local folder in which deaths are counted if `output` is None.
    """

    name: str
    worker: type[ShardWorker]
    arguments: tuple[Any, ...]
    output: str | None = None
    counts: Callable[[Record], Counts] = dict
    lease: tuple[str, int] | None = None
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    def attempts_folder(self) -> Folder:
        """Return the folder of the attempt records: the output, or a temporary folder on this node."""
        return Folder(self.output or f"{tempfile.gettempdir()}/audiodiff-attempts-{self.run}")


class LostShardError(Exception):
    """A shard has killed so many processes that it is not attempted again."""


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
        yield RayDataEngine(workers, gpus)


class InProcess:
    """An engine that runs shards one after another in this process."""

    def run(self, work: ShardWork, shards: Sequence[int]) -> Generator[Counts, None, None]:
        """See `Engine.run`."""
        if shards:
            yield from _with_cleanup(work, with_retries(ShardRunner(work).outcomes, shards))


@dataclass(frozen=True)
class RayDataEngine:
    """An engine that runs shards on Ray Data, in a fixed pool of actors.

    Args:
        workers: Number of actors.
        gpus: GPUs of each actor. If 0, each actor has one CPU.
    """

    workers: int
    gpus: int = 0

    def run(self, work: ShardWork, shards: Sequence[int]) -> Generator[Counts, None, None]:
        """See `Engine.run`."""
        yield from _with_cleanup(work, with_retries(lambda pending: self._outcomes(work, pending), shards))

    def _outcomes(self, work: ShardWork, shards: Sequence[int]) -> Generator[Outcome, None, None]:
        from ray.data import ActorPoolStrategy, DataContext, from_items

        _quiet_console()
        row_count = min(len(shards), MAX_ROWS)
        rows = [{"shards": list(shards[first::row_count])} for first in range(row_count)]
        workers = min(self.workers, row_count)
        # Ray Data and Ray's process titles show the class name of an actor.
        runner = type(work.worker.__name__, (ShardRunner,), {})
        with DataContext.current(_configure(DataContext.get_current().copy(), workers)):
            data = from_items(rows, override_num_blocks=row_count).map(
                runner,
                fn_constructor_args=(work,),
                compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
                **({"num_gpus": self.gpus} if self.gpus else {"num_cpus": 1}),
            )
            data.set_name(work.name)
            batches = data.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
            with closing(iter(batches)) as finished:
                for batch in finished:
                    for row in batch["outcomes"].to_pylist():
                        yield from (Outcome(**json.loads(outcome)) for outcome in row)


class ShardRunner:
    """The callable class of Ray Data's `map`. Each actor holds one instance, with one worker."""

    def __init__(self, work: ShardWork) -> None:
        self.work = work
        self.output = None if work.output is None else Folder(work.output)
        for parent in {Path(tempfile.gettempdir()), *([self.output.scratch_parent] if self.output else [])}:
            remove_abandoned(parent)
        self.process = uuid.uuid4().hex
        self.worker: ShardWorker | None = None
        self.failure: Exception | None = None
        try:
            self.worker = work.worker(*work.arguments)
        except Exception as failure:  # the first shard raises it: Ray Data would hide an error of the constructor
            self.failure = failure

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Run the shards of a row and return their outcomes as JSON."""
        return {"outcomes": [json.dumps(asdict(outcome)) for outcome in self.outcomes(row["shards"])]}

    def outcomes(self, shards: Sequence[int]) -> Generator[Outcome, None, None]:
        """Run `shards` and yield the outcome of each shard."""
        for shard in shards:
            try:
                yield Outcome(int(shard), self._counts(int(shard)))
            except OSError as error:
                yield Outcome(int(shard), {}, one_line(str(error)), "storage")
            except LostShardError as error:
                yield Outcome(int(shard), {}, str(error), "lost")
            except Exception as error:
                if not isinstance(error, ValueError | JobError | LeaseLostError):
                    logging.getLogger(__name__).exception("shard %d failed", shard)
                yield Outcome(int(shard), {}, f"{type(error).__name__}: {one_line(str(error))}", "error")

    def _counts(self, shard: int) -> Counts:
        """Run a shard unless it is committed, and return its counts."""
        if self.output is not None and (committed := commits.committed_one(self.output, shard)) is not None:
            return self.work.counts(committed)
        token, generation = self.work.lease or (None, None)
        attempts = Attempts(self.work.attempts_folder(), shard, self.process, token)
        if attempts.exhausted:
            raise LostShardError(f"shard {shard} killed {len(attempts.deaths)} worker processes")
        attempts.start()
        try:
            record = self._run(shard, attempts, token, generation)
        except BaseException:
            with suppress(OSError):  # the first error explains more than this error
                attempts.stop()
            raise
        attempts.stop()
        return self.work.counts(record)

    def _run(self, shard: int, attempts: Attempts, token: str | None, generation: int | None) -> Record:
        """Run a shard and commit its record."""
        if self.worker is None:
            if self.failure is not None and not isinstance(self.failure, OSError):
                raise self.failure
            self.worker = self.work.worker(*self.work.arguments)
        try:
            record = self.worker.shard(shard, attempts)
        except CommittedError:
            assert self.output is not None
            committed = commits.committed_one(self.output, shard)
            assert committed is not None, "a commit is never withdrawn"
            return committed
        if self.output is not None:
            commits.commit(
                self.output, shard, record if generation is None else {**record, "generation": generation}, token
            )
        return record


def _with_cleanup(work: ShardWork, counts: Generator[Counts, None, None]) -> Generator[Counts, None, None]:
    """Yield `counts`, then remove the temporary attempt records of a job without an output folder."""
    with closing(counts):
        try:
            yield from counts
        finally:
            if work.output is None:
                shutil.rmtree(work.attempts_folder().root, ignore_errors=True)


def _configure(context: Any, workers: int) -> Any:
    """Set Ray's `DataContext` so that each row stays one task and its errors reach the driver."""
    context.execution_no_progress_timeout_s = -1  # a shard may take hours, and so may the wait for a node
    context.raise_original_map_exception = True
    context.max_errored_blocks = 0
    context.max_consecutive_actor_init_deaths = MAX_INIT_DEATHS_PER_WORKER * workers
    context.actor_init_retry_on_errors = False
    context.target_max_block_size = None  # one output block per task
    context.execution_options.preserve_order = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None
    context.issue_detectors_config.detectors = []
    return context


def _quiet_console() -> None:
    """Keep Ray Data's messages off the terminal. They still go to its log files."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)
