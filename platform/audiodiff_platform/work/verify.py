"""Comparison of a finished dataset with its commits: every part is read again, on workers."""

from collections.abc import Mapping
from typing import Any

from audiodiff_platform import commits
from audiodiff_platform.cluster import say
from audiodiff_platform.job import JobError
from audiodiff_platform.storage import Folder
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Engine, Record, ShardWork


def verify(output: Folder, engine: Engine) -> None:
    """Read every part of a dataset again.

    Raises:
        JobError: A part is missing or differs from its commit; the message names the shards.
    """
    shards = sorted(commits.committed(output))
    work = ShardWork("audiodiff verify", VerifyWorker, (output.uri,))
    wrong = sorted(counts["shard"] for counts in engine.run(work, shards) if counts["wrong"])
    if wrong:
        names = " ".join(commits.commit_name(shard) for shard in wrong)
        raise JobError(f"{output.uri}: {len(wrong)} of {len(shards)} shards are not what was committed: remove {names} and run again to make them anew")
    say(f"verified: all {len(shards):,} shards are what was committed")


class VerifyWorker:
    """A worker that compares shards with their commits."""

    def __init__(self, output: str) -> None:
        self.output = Folder(output)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Count the parts of a shard that are missing or differ."""
        del attempts
        record = commits.committed_one(self.output, shard)
        parts: Mapping[str, Any] = record["parts"] if record else {}
        with self.output.scratch() as scratch:
            wrong = sum(not self.output.exists(name) or commits.file_sha256(self.output.fetch(name, scratch)) != digest for name, digest in parts.items())
        return {"wrong": wrong + (record is None)}
