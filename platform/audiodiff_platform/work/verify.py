"""Verification of a finished folder: workers read every part again and compare it with its commit."""

from pathlib import Path

from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.index import CommittedPart
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Engine, Record, ShardWork

MAX_NAMED = 20


def verify(output: Folder, engine: Engine) -> None:
    """Read every part of a folder and compare its SHA-256 with the commit.

    Args:
        output: The finished folder.
        engine: Engine that runs the comparison.

    Raises:
        JobError: A part is missing or differs from its commit. The message names the parts, and the commits of the
            affected shards.
    """
    shards = sorted({part.shard for part in commits.finished(output)[1]})
    work = ShardWork("audiodiff verify", VerifyWorker, (output.uri,))
    wrong = {counts["shard"]: counts["wrong"] for counts in engine.run(work, shards) if counts["wrong"]}
    if wrong:
        parts = sorted(part for of_shard in wrong.values() for part in of_shard)
        more = f" and {len(parts) - MAX_NAMED} more" if len(parts) > MAX_NAMED else ""
        names = " ".join(commits.record_places(output, sorted(wrong)))
        raise JobError(
            f"{output.uri}: {len(parts)} files are missing or changed ({', '.join(parts[:MAX_NAMED])}{more}), "
            f"in {len(wrong)} of {len(shards)} shards: remove {names} and run again to rebuild them"
        )
    say(f"verified: all {len(shards):,} shards match their commits")


class VerifyWorker:
    """A worker that compares the parts of shards with the index of the folder."""

    def __init__(self, output: str) -> None:
        self.output = Folder(output)
        self.parts: dict[int, list[CommittedPart]] = {}
        for part in commits.finished(self.output)[1]:
            self.parts.setdefault(part.shard, []).append(part)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Find the parts of a shard that are missing or differ."""
        del attempts
        with self.output.scratch() as scratch:
            return {"wrong": [part.path for part in self.parts[shard] if self._differs(part, scratch)]}

    def _differs(self, part: CommittedPart, scratch: Path) -> bool:
        return (
            not self.output.exists(part.path)
            or commits.file_sha256(self.output.fetch(part.path, scratch)) != part.sha256
        )
