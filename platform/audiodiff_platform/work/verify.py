"""Verification of a finished folder: workers read every part again and compare it with its commit."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.index import CommittedPart, parts_of, parts_of_shard
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Engine, Record, ShardWork

MAX_NAMED = 20


@dataclass(frozen=True)
class Survey:
    """Shards and unnamed files of a finished folder.

    Args:
        output: The finished folder.
        shards: The shards in the index.
        unnamed: Files in the folders of parts that no commit names.
    """

    output: Folder
    shards: Sequence[int]
    unnamed: Sequence[str]


def survey(output: Folder, folders: Sequence[str]) -> Survey:
    """Compare the folders of parts with the index.

    Memory holds eight bytes of a hash of each name. A file whose hash is that of a part by chance is overlooked.

    Args:
        output: The finished folder.
        folders: The folders of parts.

    Raises:
        FileNotFoundError: The folder has no `_SUCCESS`.
        ValueError: `_SUCCESS` or the index is damaged.
    """
    shards, named = set[int](), array("q")
    for part in commits.finished_parts(output):
        shards.add(part.shard)
        named.append(hash(part.path))
    listed = np.fromiter(map(hash, _names(output, folders)), np.int64)
    others = set(np.setdiff1d(listed, np.frombuffer(named, np.int64)).tolist())
    unnamed = sorted(name for name in _names(output, folders) if hash(name) in others) if others else []
    return Survey(output, sorted(shards), unnamed)


def _names(output: Folder, folders: Sequence[str]) -> Iterator[str]:
    return (entry.name for folder in folders for entry in output.files(f"{folder}/*"))


def verify(surveyed: Survey, engine: Engine, *, remakes: bool = False) -> None:
    """Read every part of a folder and compare its SHA-256 with the commit.

    Args:
        surveyed: The finished folder.
        engine: Engine that runs the comparison.
        remakes: Whether the job makes missing files again (see `ShardedJob`).

    Raises:
        JobError: A part is missing or differs from its commit, or a file is no part. The message names the files, and
            the commits of the affected shards.
    """
    output, shards, faults = surveyed.output, surveyed.shards, list[str]()
    work = ShardWork("audiodiff verify", VerifyWorker, (output.uri,))
    wrong = {counts["shard"]: counts["wrong"] for counts in engine.run(work, shards) if counts["wrong"]}
    if wrong:
        parts = sorted(part for of_shard in wrong.values() for part in of_shard)
        names = " ".join(commits.record_places(output, sorted(wrong)))
        faults.append(
            f"{len(parts)} files are missing or changed ({_first(parts)}), in {len(wrong)} of {len(shards)} shards: "
            + (
                f"remove those that are changed, or {names}, and run without verify to make all of them again"
                if remakes
                else f"remove {names} and run again to rebuild them"
            )
        )
    if unnamed := surveyed.unnamed:
        faults.append(
            f"{len(unnamed)} files are named by no commit ({_first(unnamed)}): move them elsewhere, or run without "
            "verify, which removes them"
        )
    if faults:
        raise JobError(f"{output.uri}: {'; '.join(faults)}")
    say(f"verified: all {len(shards):,} shards match their commits")


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"


class VerifyWorker:
    """A worker that compares the parts of shards with the index of the folder."""

    def __init__(self, output: str) -> None:
        self.output = Folder(output)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Find the parts of a shard that are missing or differ."""
        del attempts
        with self.output.scratch() as scratch:
            return {"wrong": [part.path for part in self._parts(shard) if self._differs(part, scratch)]}

    def _parts(self, shard: int) -> list[CommittedPart]:
        try:
            return parts_of_shard(self.output, shard)
        except FileNotFoundError:  # the folder is of an earlier version, or its index was removed meanwhile
            return [part for part in parts_of(commits.committed(self.output)) if part.shard == shard]

    def _differs(self, part: CommittedPart, scratch: Path) -> bool:
        return (
            not self.output.exists(part.path)
            or commits.file_sha256(self.output.fetch(part.path, scratch)) != part.sha256
        )
