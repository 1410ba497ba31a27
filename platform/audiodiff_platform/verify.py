"""Whether a finished dataset is what was committed: every part is read again, on workers."""

from typing import Any

from audiodiff_platform import commits
from audiodiff_platform.cluster import say
from audiodiff_platform.job import JobError
from audiodiff_platform.shards import run_shards
from audiodiff_platform.storage import Folder


def verify(output: Folder, workers: int) -> None:
    """Raises JobError that names the shards whose files differ from their commits."""
    shards = sorted(commits.committed(output))
    wrong = sorted(counts["shard"] for counts in run_shards(VerifyWorker, (output.uri,), shards, workers) if counts["wrong"])
    if wrong:
        names = " ".join(f"_commits/{shard:06d}.json" for shard in wrong)
        raise JobError(f"{output.uri}: {len(wrong)} of {len(shards)} shards are not what was committed: remove {names} and run again to make them anew")
    say(f"verified: all {len(shards):,} shards are what was committed")


class VerifyWorker:
    """Compares shards with their commits; lives in an actor."""

    def __init__(self, output: str) -> None:
        self.output = Folder(output)

    def shard(self, shard: int) -> dict[str, int]:
        """How many of the shard's parts are missing or differ."""
        parts: dict[str, Any] = commits.committed_one(self.output, shard)["parts"]
        with self.output.scratch() as scratch:
            wrong = sum(not self.output.exists(name) or commits.file_sha256(self.output.fetch(name, scratch)) != digest for name, digest in parts.items())
        return {"shard": shard, "wrong": wrong}
