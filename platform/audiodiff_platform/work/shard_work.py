"""A job that is done shard by shard, and the workers that do its shards."""

import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from audiodiff_platform.storage import Folder
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.outcomes import Handover

Record = Mapping[str, Any]
"""JSON values of the commit record of a shard. `parts` maps the name of each file in the folder to its SHA-256."""
Counts = Mapping[str, Any]
Commit = Callable[[Attempts, Record], None]
"""Function that commits the record of a shard. It may be called on any thread."""


class ShardWorker(Protocol):
    """A worker that processes one shard after another. Its constructor loads the models."""

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Write the files of a shard and return the record that the engine commits.

        Args:
            shard: Number of the shard.
            attempts: Earlier attempts at the shard, in which the worker marks the item in progress.
        """


@runtime_checkable
class ShardStreamWorker(Protocol):
    """A worker that begins a shard before the shards before it are finished. Its constructor loads the models."""

    def shards(self, pending: Iterable[Attempts], commit: Commit) -> Iterator[tuple[Attempts, Record | Exception]]:
        """Write the files of shards, and call `commit` for each shard as soon as its files are written.

        Args:
            pending: Earlier attempts at each shard to do. A shard counts as in progress once it is taken, until its
                result is yielded: if the process dies meanwhile, the death counts against the shard.
            commit: Commits the record of a shard.

        Yields:
            Each shard taken, with its committed record, or with the error that ended it.

        Raises:
            Exception: An error that ends all shards in progress.
        """


@runtime_checkable
class HandingWorker(ShardStreamWorker, Protocol):
    """A worker that can hand its shards over to a finisher, instead of writing their files."""

    def handovers(self, pending: Iterable[Attempts]) -> Iterator[tuple[Attempts, Handover | Exception]]:
        """Do the first part of the work on shards. The same shard gives the same handover.

        Args:
            pending: As in `shards`.

        Yields:
            Each shard taken, with what its finisher needs, or with the error that ended it.

        Raises:
            Exception: An error that ends all shards in progress.
        """


class Finisher(Protocol):
    """A worker that finishes one shard after another. Its constructor takes the arguments of the worker."""

    def finish(self, handover: Handover, attempts: Attempts) -> Record:
        """Write the files of a shard and return the record that the engine commits.

        Args:
            handover: What the worker has handed over. Its content is read-only.
            attempts: Earlier attempts to finish the shard, in which the finisher marks the item in progress.
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
        finisher: Class of the workers of a second stage, to which the workers hand their shards over if they run on
            GPUs. None: there is one stage.
    """

    name: str
    worker: type[ShardWorker | ShardStreamWorker]
    arguments: tuple[Any, ...]
    output: str | None = None
    counts: Callable[[Record], Counts] = dict
    lease: tuple[str, int] | None = None
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    finisher: type[Finisher] | None = None

    @property
    def is_stream(self) -> bool:
        """True if a worker does several shards at once."""
        return issubclass(self.worker, ShardStreamWorker)

    def attempts_folder(self) -> Folder:
        """Return the folder of the attempt records: the output, or a temporary folder on this node."""
        return Folder(self.output or f"{tempfile.gettempdir()}/audiodiff-attempts-{self.run}")
