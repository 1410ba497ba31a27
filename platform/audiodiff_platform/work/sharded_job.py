"""The sequence of steps of every sharded job, from the check of its settings to `_SUCCESS`.

1. The caller checks that the folder holds no work of other settings, and takes the lease of the folder.
2. `run` writes the settings and the plan, and runs the planned shards that are not committed. If the job remakes lost
   files, it first withdraws the commits of shards that lack files.
3. `records` checks that the plan, the commits and the files agree, and removes files that no commit names.
4. `succeed` writes `_SUCCESS` as the last file.

Each job provides the settings, the plan and the worker, and writes any other files of its folder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from audiodiff_platform.cluster import require_shared
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.terminal import say
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
        """All shards of the job, including shards that are not written to the plan yet."""

    def write(self) -> None:
        """Append the shards that are not planned yet to the plan in the output folder."""


@dataclass(frozen=True)
class FixedPlan:
    """Shards that follow from the settings of the job, so that no plan is written."""

    shards: Mapping[int, ShardSize]

    def write(self) -> None:
        """Write nothing."""


@dataclass
class ShardedJob:
    """A job that fills its output folder shard by shard.

    Args:
        work: Worker and name of the job.
        lease: Lease of the output folder. The caller holds it until the job has ended.
        claim: Name of the settings file in the folder, and all settings that determine the content of the folder.
        plan: The shards.
        parts: Subfolders of the files that commits name.
        unit: Name of the work in progress lines, such as "slices".
        remakes: Whether to run shards again whose committed files are missing or have another size. If not, such files
            are an error of `records`.

    Raises:
        ValueError: The folder holds work of other settings.
    """

    work: ShardWork
    lease: Lease
    claim: tuple[str, Mapping[str, Any]]
    plan: Plan
    parts: tuple[str, ...]
    unit: str
    remakes: bool = False
    pending: Mapping[int, ShardSize] = field(init=False)
    """The shards that are not committed, or whose files are to be made again."""

    @property
    def output(self) -> Folder:
        """The output folder."""
        return self.lease.folder

    def __post_init__(self) -> None:
        commits.require_same(self.output, *self.claim)
        records = commits.committed(self.output)
        self._lost = _lost(records, self._present()) if self.remakes and records else {}
        again = set(self._lost.values())
        self.done: Mapping[int, dict[str, Any]] = {
            shard: record for shard, record in records.items() if shard not in again
        }
        self.pending = {shard: size for shard, size in self.plan.shards.items() if shard not in self.done}

    @property
    def needs_isolation(self) -> bool:
        """True if an earlier run died while it ran a shard without Ray."""
        return attempts.driver_died_without_ray(self.output)

    def run(
        self,
        engine: Engine,
        *,
        before_plan: Callable[[], None] = lambda: None,
        on_shard: Callable[[Counts], None] = lambda _: None,
        progress: Progress | None = None,
    ) -> None:
        """Run the pending shards.

        Args:
            engine: Engine that runs the shards.
            before_plan: Function that is called after the settings and before the plan are written.
            on_shard: Function that is called with the counts of each finished shard. If it raises, the job ends.
            progress: Progress that prints lines. None selects lines of shards and counts.

        Raises:
            ValueError: The folder holds work of other settings, or some nodes cannot see it.
            JobError: A worker failed.
            LeaseLostError: Another job owns the folder.
        """
        name, settings = self.claim
        commits.claim(self.output, name, settings)
        require_shared("output_dir", self.output.uri, name)
        before_plan()
        require_token(self.output, self.lease.token)
        self.plan.write()
        self.output.remove(attempts.FOLDER)  # marks of earlier runs count against no item
        commits.begin(self.output)
        if again := self.pending.keys() & self._lost.values():
            say(
                f"{len(self._lost):,} committed files are missing or have another size, such as {min(self._lost)}: "
                f"{len(again):,} of {len(self.plan.shards):,} shards are made again"
            )
            commits.withdraw(self.output, again)
        progress = progress or Progress(self.unit, self.pending)
        for counts in engine.run(
            replace(self.work, lease=(self.lease.token, self.lease.generation)), sorted(self.pending)
        ):
            self.lease.check()
            progress.finished(counts)
            on_shard(counts)

    def records(self) -> dict[int, dict[str, Any]]:
        """Return the commit records by shard, and remove files that no record names.

        Raises:
            JobError: The plan, the commits and the files disagree.
            LeaseLostError: Another job owns the folder.
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
        present = self._present()
        if lost := _lost(records, present):
            first = min(lost)
            names = " ".join(commits.record_places(self.output, [lost[first]]))
            remedy = "run again" if self.remakes else f"remove {names} and run again to rebuild its shard"
            raise JobError(
                f"{self.output.uri}: {len(lost)} committed files are missing or have another size, "
                f"such as {first}: {remedy}"
            )
        named = {name for record in records.values() for name in record["parts"]}
        self.output.remove_files(sorted(present.keys() - named))
        self.done = dict(sorted(records.items()))
        return dict(self.done)

    def _present(self) -> dict[str, int]:
        """Return the sizes of the files in the folders of parts, by name."""
        return {entry.name: entry.size for folder in self.parts for entry in self.output.files(f"{folder}/*")}

    def succeed(self, summary: Mapping[str, Any]) -> None:
        """Remove the attempt records and write `_SUCCESS` with `summary`. Call `records` first.

        Raises:
            LeaseLostError: Another job owns the folder.
        """
        require_token(self.output, self.lease.token)
        self.output.remove(attempts.FOLDER)
        commits.succeed(self.output, summary, self.done)


def _lost(records: Mapping[int, Mapping[str, Any]], present: Mapping[str, int]) -> dict[str, int]:
    """Return the committed files that are missing or have another size than in their record, each with its shard."""
    return {
        name: shard
        for shard, record in records.items()
        for name in record["parts"]
        if present.get(name) != record.get("sizes", {}).get(name, present.get(name, -1))
    }
