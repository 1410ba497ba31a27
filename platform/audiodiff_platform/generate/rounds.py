"""Rounds of candidates, until enough of them are accepted.

The size of a round depends only on the numbers of loops, candidates and accepted candidates so far. With a file of
requests, a sweep or a folder, there is one round: no request replaces a rejected loop.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from audiodiff_core.checkpoint import Model
from audiodiff_core.pipeline import RequestCheck
from audiodiff_core.sampling.requests import SEEDS
from audiodiff_platform.audio_files import Source
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.generate.candidates import (
    CANDIDATES_SETTINGS,
    CandidateFinisher,
    CandidateWorker,
    candidates_uri,
    measured_candidates,
)
from audiodiff_platform.generate.checked_rows import LoopRow
from audiodiff_platform.generate.conditions import CONDITIONS, with_encodings
from audiodiff_platform.generate.decisions import Decisions
from audiodiff_platform.generate.gate import check_of
from audiodiff_platform.generate.loop_rows import LoopRows, loop_rows
from audiodiff_platform.generate.options import MAX_LOOPS, GenerateOptions
from audiodiff_platform.generate.progress import LoopProgress
from audiodiff_platform.generate.reference import REFERENCE, ReferenceData
from audiodiff_platform.generate.request_plan import grown
from audiodiff_platform.generate.stage import run_pending
from audiodiff_platform.generate.worker import shard_counts
from audiodiff_platform.mel_data.loops_folder import LOOPS_SETTINGS
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import owned
from audiodiff_platform.work import plan_files
from audiodiff_platform.work.plan import ShardSize
from audiodiff_platform.work.shard_work import ShardWork
from audiodiff_platform.work.sharded_job import ShardedJob

MAX_PLACES_PER_LOOP = 10
"""Largest number of places that are tried for each loop of a job."""
MIN_PLACES = 100
"""Number of places that are tried at least, for jobs of few loops."""
MARGIN = 1.1
"""Number of places of a round beyond the first, relative to the number that is expected to suffice."""


@dataclass(frozen=True)
class Rounds:
    """The rounds of candidates of a job.

    Args:
        options: Options of the job.
        check: Check of requests against the model.
        model: The model.
        settings: Settings of the output folder.
        shard_size: Number of candidates of a shard.
        bytes_per_second: Size of the audio in bytes per second.
        reference: Data of the reference, or None without the check `copy`.
    """

    options: GenerateOptions
    check: RequestCheck
    model: Model
    settings: Mapping[str, Any]
    shard_size: int
    bytes_per_second: float
    reference: ReferenceData | None

    def decided(self, connection: ExitStack) -> "DecidedLoops":
        """Generate and measure candidates until enough are accepted.

        Args:
            connection: The connection to Ray.

        Raises:
            ValueError: The candidates of the folder are of other requests, or the reference cannot be used.
            JobError: Too few candidates are accepted, or a worker failed.
        """
        options = self.options
        wanted = options.count if options.replaces else None
        decisions, measured = Decisions(options, wanted), 0
        with owned(Folder(candidates_uri(options.output_dir)), take_over=True) as lease:
            folder = lease.folder
            reference = None if self.reference is None or folder.exists(REFERENCE) else self.reference.read()
            commits.claim(Folder(options.output_dir), LOOPS_SETTINGS, self.settings)
            if reference is not None:
                reference.store(folder)
            total = max((wanted or 0) * options.per_place, plan_files.row_count(folder))
            progress: LoopProgress | None = None
            while True:
                seeds = {"count": total} if options.replaces else {}
                loops = loop_rows(options.model_copy(update=seeds), self.check)
                dim = self.check.geometry.encoding_dim
                with with_encodings(options, loops, self.model.record, dim, folder) as encoded:
                    plan = grown(folder, encoded, self.shard_size)
                work = ShardWork(
                    "audiodiff generate candidates",
                    CandidateWorker,
                    (options, self.model.digest),
                    folder.uri,
                    shard_counts,
                    finisher=CandidateFinisher,
                )
                claim = (CANDIDATES_SETTINGS, self.settings)
                job = ShardedJob(work, lease, claim, plan, ("measured",), "candidates", remakes=True)
                if progress is None:
                    progress = LoopProgress(job.unit, job.pending, options.node_price)
                else:
                    progress.add(job.pending)
                run_pending(job, options, self.bytes_per_second, connection, sources=loops.sources, progress=progress)
                for shard in sorted(job.records())[measured:]:
                    decisions.add(measured_candidates(folder, shard, options))
                measured = len(plan.shards)
                if wanted is None or decisions.complete:
                    break
                total = self._more(total, wanted, decisions)
            folder.remove(CONDITIONS)
            job.succeed({"candidates": loops.count})
        return DecidedLoops(folder, decisions.reasons, starts(plan.shards), loops.origin, loops.sources, progress)

    def _more(self, total: int, wanted: int, decisions: Decisions) -> int:
        """Return the number of candidates after the next round.

        Raises:
            JobError: The number of candidates has reached its limit.
        """
        options, accepted = self.options, decisions.accepted
        most = max(MAX_PLACES_PER_LOOP * wanted, MIN_PLACES) * options.per_place
        most = min(most, MAX_LOOPS, len(SEEDS) - options.seed)
        if total >= most:
            raise JobError(
                f"{accepted:,} of {wanted:,} loops are accepted among {total:,} candidates, the most that are tried "
                f"(rejected: {described(decisions.reasons)}): request fewer loops, or use other thresholds in another "
                "folder"
            )
        places = total // options.per_place
        expected = (wanted - accepted) * (places + 1) / (accepted + 1)
        candidates = math.ceil(MARGIN * expected) * options.per_place
        more = -(-candidates // self.shard_size) * self.shard_size
        say(f"{accepted:,} of {wanted:,} loops are accepted (rejected: {described(decisions.reasons)})")
        return min(total + more, most)


@dataclass(frozen=True)
class DecidedLoops:
    """The decided candidates of a folder, in their order.

    Args:
        folder: Folder of the candidates.
        reasons: For each candidate, why it is not delivered, or None.
        starts: Number of the first candidate of each shard.
        origin: Option that states the loops, for error messages.
        sources: The files of the sources of the candidates.
        progress: The counter of the candidates of this run.
    """

    folder: Folder
    reasons: list[str | None]
    starts: list[int]
    origin: str
    sources: Mapping[str, Source]
    progress: LoopProgress

    def __iter__(self) -> Iterator[LoopRow]:
        """Yield the delivered and the rejected loops."""
        for reason, row in zip(self.reasons, plan_files.all_rows(self.folder), strict=False):
            seconds = row["seconds"] if reason is None else 0.0
            yield LoopRow(row["id"], row["request"], row["encoding"], seconds, reason)

    @property
    def loops(self) -> LoopRows:
        """The loops to deliver, as loops of a job."""
        seconds = sum(loop.seconds for loop in self)
        return LoopRows(self, len(self.reasons), seconds, self.origin, sources=self.sources)

    def remove_files(self) -> None:
        """Remove the files of candidates, which are delivered."""
        for part in ("audio", "pictures"):
            self.folder.remove(part)

    def summary(self) -> dict[str, Any]:
        """Return the numbers of candidates and of rejected candidates by check, as JSON values."""
        rejected = rejections(self.reasons)
        return {"candidates": len(self.reasons), "accepted": self.reasons.count(None), "rejected": dict(rejected)}


def rejections(reasons: list[str | None]) -> Counter[str]:
    """Count the rejected loops by the name of the check, the most frequent first."""
    checks = Counter(check for reason in reasons if reason is not None and (check := check_of(reason)))
    return Counter(dict(checks.most_common()))


def described(reasons: list[str | None]) -> str:
    """Describe the numbers of rejected loops and of failures."""
    counts = rejections(reasons)
    failed = len(reasons) - reasons.count(None) - counts.total()
    texts = [f"{count:,} {check}" for check, count in counts.items()]
    return ", ".join([*texts, *([f"{failed:,} failed"] if failed else [])]) or "none"


def starts(shards: Mapping[int, ShardSize]) -> list[int]:
    """Return the number of the first row of each shard of a plan."""
    return [0, *accumulate(shards[shard].sources for shard in range(len(shards)))][:-1]
