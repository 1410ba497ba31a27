"""The sequence of every sharded job, from the check of its settings to `_SUCCESS`.

1. The caller checks that the folder holds no work of other settings, and takes its lease.
2. `run`: claim the settings, write the plan, and do the planned shards that no commit names.
3. `records`: planned, committed and present agree; what no commit names is removed.
4. `succeed`: `_SUCCESS`, last.

A verb supplies the settings, the plan, the worker, and what it writes beside the parts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from audiodiff_platform.cluster import require_shared
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import Lease, require_token
from audiodiff_platform.work import attempts
from audiodiff_platform.work.engine import Counts, Engine, ShardWork
from audiodiff_platform.work.plan import ShardSize
from audiodiff_platform.work.progress import Progress


class Plan(Protocol):
    """The shards of a job."""

    @property
    def shards(self) -> Mapping[int, ShardSize]:
        """All shards, planned earlier or about to be planned."""

    def write(self) -> None:
        """Append the shards that are not planned yet to the plan in the output folder."""


@dataclass(frozen=True)
class FixedPlan:
    """Shards that the settings of a job determine, so that no plan is written."""

    shards: Mapping[int, ShardSize]

    def write(self) -> None:
        """Write nothing."""


@dataclass
class ShardedJob:
    """A folder that is made shard by shard.

    Args:
        work: The worker and the name of the job.
        lease: The lease of the folder, which the caller holds until the job has ended.
        claim: The name of the settings file in the folder, and all that decides what the folder holds.
        plan: The shards.
        parts: The subfolders of the parts that commits name.
        unit: The noun of the progress line ("slices").
    """

    work: ShardWork
    lease: Lease
    claim: tuple[str, Mapping[str, Any]]
    plan: Plan
    parts: tuple[str, ...]
    unit: str
    pending: Mapping[int, ShardSize] = field(init=False)

    @property
    def output(self) -> Folder:
        """The folder."""
        return self.lease.folder

    def __post_init__(self) -> None:
        commits.require_same(self.output, *self.claim)
        committed = commits.committed(self.output)
        self.done: Mapping[int, dict[str, Any]] = committed
        self.pending = {shard: size for shard, size in self.plan.shards.items() if shard not in committed}

    @property
    def needs_isolation(self) -> bool:
        """True if the last run ended in the midst of a shard that it did without Ray."""
        return attempts.died_in_this_machines_driver(self.output)

    def run(
        self,
        engine: Engine,
        *,
        before_plan: Callable[[], None] = lambda: None,
        on_shard: Callable[[Counts], None] = lambda _: None,
    ) -> None:
        """Do the pending shards.

        Args:
            engine: Runs the shards.
            before_plan: Called between the claim and the plan.
            on_shard: Called with the counts of each finished shard; an exception ends the job.

        Raises:
            ValueError: The folder holds work of other settings, or is not shared by all nodes.
            JobError: A worker failed.
        """
        name, settings = self.claim
        commits.claim(self.output, name, settings)
        require_shared("output_dir", self.output.uri, name)
        before_plan()
        require_token(self.output, self.lease.token)
        self.plan.write()
        self.output.remove(attempts.FOLDER)  # marks of earlier runs, which blame no item
        commits.begin(self.output)
        progress = Progress(self.unit, self.pending)
        for counts in engine.run(
            replace(self.work, lease=(self.lease.token, self.lease.generation)), sorted(self.pending)
        ):
            self.lease.check()
            progress.finished(counts)
            on_shard(counts)

    def records(self) -> dict[int, dict[str, Any]]:
        """Return the commit records by shard, and remove files that no record names.

        Raises:
            JobError: Planned, committed and present disagree.
        """
        require_token(self.output, self.lease.token)
        records = commits.committed(self.output)
        planned = self.plan.shards.keys()
        if missing := sorted(planned - records.keys()):
            raise JobError(f"{self.output.uri}: {len(missing)} planned shards are not committed, such as {missing[0]}")
        if unplanned := sorted(records.keys() - planned):
            raise JobError(
                f"{self.output.uri}: {len(unplanned)} committed shards are not planned, such as {unplanned[0]}"
            )
        present = {entry.name: entry.size for folder in self.parts for entry in self.output.files(f"{folder}/*")}
        owner = {name: shard for shard, record in records.items() for name in record["parts"]}
        sizes = {name: size for record in records.values() for name, size in record.get("sizes", {}).items()}
        if lost := sorted(name for name in owner if present.get(name) != sizes.get(name, present.get(name, -1))):
            raise JobError(
                f"{self.output.uri}: {len(lost)} committed files are missing or have another size, such as {lost[0]}: remove "
                f"{' '.join(commits.record_places(self.output, [owner[lost[0]]]))} and run again to make its shard anew"
            )
        self.output.remove_files(sorted(present.keys() - owner.keys()))
        self.done = dict(sorted(records.items()))
        return dict(self.done)

    def succeed(self, summary: Mapping[str, Any]) -> None:
        """Remove the records of unfinished work, and write `_SUCCESS` with the summary. `records` has been called."""
        require_token(self.output, self.lease.token)
        self.output.remove(attempts.FOLDER)
        commits.succeed(self.output, summary, self.done)
