"""Shards of work on Ray Data, or one by one in this process.

A shard is a row from plan to commit: shard numbers and counts travel through Ray, audio and images never do. Before a
worker starts a shard, it looks for the commit of that shard, so a shard that Ray runs twice is done once. An OSError, by
which storage fails, is returned as a row, and the shard is retried after the others. Every other error ends the job.
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
from typing import Any, Literal, Protocol

from threadpoolctl import threadpool_limits

from audiodiff_platform.cluster import connected, runs_locally, workers_for
from audiodiff_platform.cluster.capacity import Device
from audiodiff_platform.entry.errors import JobError, LeaseLostError, one_line
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.scratch import remove_abandoned
from audiodiff_platform.work.attempts import Attempts, CommittedError

ROUNDS = 4  # the first attempt at a shard, and three retries
MOST_ROWS = 10_000  # each row is an object that the driver creates: beyond, a row holds several shards
INIT_DEATHS_PER_WORKER = 3

Record = Mapping[str, Any]
"""JSON values that a commit states of a shard, among them `parts`: the digest of each file by its name in the folder."""
Counts = Mapping[str, Any]


class ShardWorker(Protocol):
    """A worker that does whole shards: its constructor loads models, `shard` puts the parts of one shard in place."""

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Put the parts of a shard in place -> the record that the engine then commits."""


@dataclass(frozen=True)
class ShardWork:
    """The work that is done shard by shard.

    Args:
        name: The name of the job in Ray's dashboard.
        worker: The class of the workers.
        arguments: Arguments of the class.
        output: URI of the folder that holds the commits, or None if nothing is committed.
        counts: Returns the counts of a shard as JSON values, for progress, from its record.
        lease: The token and the generation of the lease of `output`; commits compare the one and state the other.
        run: A name of this run, under which each node counts deaths if nothing is committed.
    """

    name: str
    worker: type[ShardWorker]
    arguments: tuple[Any, ...]
    output: str | None = None
    counts: Callable[[Record], Counts] = dict
    lease: tuple[str, int] | None = None
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    def attempts_folder(self) -> Folder:
        """Return the folder that holds the attempts: the output, or a local one."""
        return Folder(self.output or f"{tempfile.gettempdir()}/audiodiff-attempts-{self.run}")


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt at a shard.

    Args:
        shard: The number of the shard.
        counts: The counts of a shard that is done.
        failure: The reason, in one line, for which a shard is not done.
        kind: "done"; "storage", which is retried; "lost", which is not; "error", which ends the job.
    """

    shard: int
    counts: Counts
    failure: str = ""
    kind: Literal["done", "storage", "lost", "error"] = "done"


class LostShardError(Exception):
    """A shard that ended so many processes that it is given up."""


class Engine(Protocol):
    """A means to run shards."""

    def run(self, work: ShardWork, shards: Sequence[int]) -> Generator[Counts, None, None]:
        """Do `shards`, each once, and yield the counts of each shard (with its number, `shard`) as it finishes.

        Raises:
            JobError: A worker failed, or storage failed at a shard four times.
        """


@contextmanager
def engine(
    shards: int, num_workers: int | None, device: Device = "auto", *, isolated: bool = False
) -> Iterator[Engine]:
    """Connect to Ray for so many shards.

    A single shard of a local run is done in this process, without Ray, unless it is to be `isolated`.
    """
    if shards <= 1 and num_workers in (None, 1) and runs_locally() and not isolated:
        with threadpool_limits(1):  # as in the workers: the thread count changes the last bits
            yield InProcess()
        return
    with connected():
        workers, gpus = workers_for(num_workers, device)
        yield RayDataEngine(workers, gpus)


class InProcess:
    """Run shards one after another in this process."""

    def run(self, work: ShardWork, shards: Sequence[int]) -> Generator[Counts, None, None]:
        """As `Engine.run`."""
        if shards:
            yield from _cleaned(work, _with_retries(ShardRunner(work).outcomes, shards))


@dataclass(frozen=True)
class RayDataEngine:
    """Run shards on Ray Data, on a fixed pool of actors with a CPU or with GPUs each."""

    workers: int
    gpus: int = 0

    def run(self, work: ShardWork, shards: Sequence[int]) -> Generator[Counts, None, None]:
        """As `Engine.run`."""
        yield from _cleaned(work, _with_retries(lambda pending: self._outcomes(work, pending), shards))

    def _outcomes(self, work: ShardWork, shards: Sequence[int]) -> Generator[Outcome, None, None]:
        from ray.data import ActorPoolStrategy, DataContext, from_items

        quiet_console()
        rows = [
            {"shards": list(shards[first :: min(len(shards), MOST_ROWS)])}
            for first in range(min(len(shards), MOST_ROWS))
        ]
        workers = min(self.workers, len(rows))
        # Ray Data and Ray's process titles name an actor by the name of its class.
        runner = type(work.worker.__name__, (ShardRunner,), {})
        with DataContext.current(_settings(DataContext.get_current().copy(), workers)):
            data = from_items(rows, override_num_blocks=len(rows)).map(
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
    """The callable of Ray Data's map, which lives in an actor with one worker."""

    def __init__(self, work: ShardWork) -> None:
        self.work = work
        self.output = None if work.output is None else Folder(work.output)
        for place in {Path(tempfile.gettempdir()), *([self.output.scratch_parent] if self.output else [])}:
            remove_abandoned(place)
        self.process = uuid.uuid4().hex
        self.worker: ShardWorker | None = None
        self.failure: Exception | None = None
        try:
            self.worker = work.worker(*work.arguments)
        except Exception as failure:  # raised by the first shard, which Ray Data hands on
            self.failure = failure

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Run the shards of a row."""
        return {"outcomes": [json.dumps(asdict(outcome)) for outcome in self.outcomes(row["shards"])]}

    def outcomes(self, shards: Sequence[int]) -> Generator[Outcome, None, None]:
        """Run `shards`, and yield the outcome of each."""
        for shard in shards:
            try:
                yield Outcome(int(shard), self._done(int(shard)))
            except OSError as error:
                yield Outcome(int(shard), {}, one_line(str(error)), "storage")
            except LostShardError as error:
                yield Outcome(int(shard), {}, str(error), "lost")
            except Exception as error:
                if not isinstance(error, ValueError | JobError | LeaseLostError):
                    logging.getLogger(__name__).exception("shard %d failed", shard)
                yield Outcome(int(shard), {}, f"{type(error).__name__}: {one_line(str(error))}", "error")

    def _done(self, shard: int) -> Counts:
        if self.output is not None and (record := commits.committed_one(self.output, shard)) is not None:
            return self.work.counts(record)
        token, generation = self.work.lease or (None, None)
        attempts = Attempts(self.work.attempts_folder(), shard, self.process, token)
        if attempts.exhausted:
            raise LostShardError(f"shard {shard} ended {len(attempts.deaths)} processes")
        attempts.start()
        try:
            done = self._made(shard, attempts, token, generation)
        except BaseException:
            with suppress(OSError):  # the error at hand says more
                attempts.stop()
            raise
        attempts.stop()
        return self.work.counts(done)

    def _made(self, shard: int, attempts: Attempts, token: str | None, generation: int | None) -> Record:
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


def _with_retries(
    attempt: Callable[[Sequence[int]], Generator[Outcome, None, None]], shards: Sequence[int]
) -> Generator[Counts, None, None]:
    """Yield the counts of finished shards; run those at which storage failed again, up to three times."""
    pending, lost = list(shards), list[str]()
    if not pending:
        return
    for retries_left in reversed(range(ROUNDS)):
        failures: dict[int, str] = {}
        with closing(attempt(pending)) as outcomes:
            for outcome in outcomes:
                match outcome.kind:
                    case "done":
                        yield {"shard": outcome.shard, **outcome.counts}
                    case "storage":
                        failures[outcome.shard] = outcome.failure
                    case "lost":
                        lost.append(outcome.failure)
                    case "error":
                        raise JobError(f"a worker failed: {outcome.failure}")
        if not failures:
            break
        shard, failure = next(iter(failures.items()))
        report = f"storage failed at {len(failures)} of {len(pending)} shards, such as {shard} ({failure})"
        if not retries_left:
            raise JobError(f"{report}: run the same command again to continue")
        say(f"{report}: retrying")
        pending = sorted(failures)
    if lost:
        raise JobError(f"{'; '.join(lost)}: see the log of the workers, then run the same command again")


def _cleaned(work: ShardWork, counts: Generator[Counts, None, None]) -> Generator[Counts, None, None]:
    """Yield `counts`, and remove what a job without a folder of its own has counted on this node."""
    with closing(counts):
        try:
            yield from counts
        finally:
            if work.output is None:
                shutil.rmtree(work.attempts_folder().root, ignore_errors=True)


def _settings(context: Any, workers: int) -> Any:
    """Set what keeps a shard one row and one task, and its failures visible; see Ray's `DataContext`."""
    context.execution_no_progress_timeout_s = -1  # a shard may take hours, and so may the wait for a node
    context.raise_original_map_exception = True
    context.max_errored_blocks = 0
    context.max_consecutive_actor_init_deaths = INIT_DEATHS_PER_WORKER * workers
    context.actor_init_retry_on_errors = False
    context.target_max_block_size = None  # one output block for each task
    context.execution_options.preserve_order = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None
    context.issue_detectors_config.detectors = []
    return context


def quiet_console() -> None:
    """Keep Ray Data's messages off the terminal; its log files keep them."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)
