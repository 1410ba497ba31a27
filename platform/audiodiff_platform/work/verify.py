"""Verification of a finished dataset: workers read every part again and compare it with its commit."""

from pathlib import Path

from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.index import CommittedPart
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Engine, Record, ShardWork


def verify(output: Folder, engine: Engine) -> None:
    """Read every part of a dataset and compare its SHA-256 with the commit.

    Args:
        output: Folder of the finished dataset.
        engine: Engine that runs the comparison.

    Raises:
        JobError: A part is missing or differs from its commit. The message names the commits of the affected shards.
    """
    shards = sorted({part.shard for part in commits.finished(output)[1]})
    work = ShardWork("audiodiff verify", VerifyWorker, (output.uri,))
    wrong = sorted(counts["shard"] for counts in engine.run(work, shards) if counts["wrong"])
    if wrong:
        names = " ".join(commits.record_places(output, wrong))
        raise JobError(
            f"{output.uri}: {len(wrong)} of {len(shards)} shards differ from their commits: "
            f"remove {names} and run again to rebuild them"
        )
    say(f"verified: all {len(shards):,} shards match their commits")


class VerifyWorker:
    """A worker that compares the parts of shards with the index of the dataset."""

    def __init__(self, output: str) -> None:
        self.output = Folder(output)
        self.parts: dict[int, list[CommittedPart]] = {}
        for part in commits.finished(self.output)[1]:
            self.parts.setdefault(part.shard, []).append(part)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Count the parts of a shard that are missing or differ."""
        del attempts
        with self.output.scratch() as scratch:
            return {"wrong": sum(self._differs(part, scratch) for part in self.parts[shard])}

    def _differs(self, part: CommittedPart, scratch: Path) -> bool:
        return (
            not self.output.exists(part.path)
            or commits.file_sha256(self.output.fetch(part.path, scratch)) != part.sha256
        )
