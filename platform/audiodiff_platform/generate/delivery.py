"""Worker that delivers candidates: audio files and manifest rows of accepted ones, manifest rows of rejected ones."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from audiodiff_platform.generate.candidates import candidates_uri, measured_rows
from audiodiff_platform.generate.gate import check_of
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.request_plan import PlannedLoop, shard_loops
from audiodiff_platform.generate.worker import GenerateWorker, Rows, shard_record
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Counts, Record


class DeliveryWorker:
    """Worker that delivers shards of decided loops.

    Args:
        options: Options of the job.
        model_digest: Digest of the model at the start of the job.
        first_rows: Number of the first row of each shard of the output folder.
        first_candidates: Number of the first candidate of each shard of the candidates. Row n is candidate n.
    """

    def __init__(
        self, options: GenerateOptions, model_digest: str, first_rows: Sequence[int], first_candidates: Sequence[int]
    ) -> None:
        self.options, self.model_digest = options, model_digest
        self.first_rows, self.first_candidates = first_rows, first_candidates
        self.output, self.candidates = Folder(options.output_dir), Folder(candidates_uri(options.output_dir))

    @cached_property
    def _generator(self) -> GenerateWorker:
        """The worker that generates candidates again whose files were removed."""
        return GenerateWorker(self.options, self.model_digest)

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Deliver a shard: write its audio files and its part of the manifest.

        Returns:
            The record of the shard: numbers of rows, failures and rejections, digests and sizes in bytes of the files.
        """
        loops = shard_loops(self.output, shard)
        rows: Rows = {}
        missing: dict[int, PlannedLoop] = {}
        for place, (loop, row) in enumerate(zip(loops, self._measured(shard, len(loops)), strict=True)):
            attempts.require_running()
            assert row["id"] == loop.id, "row n of the plan is candidate n"
            if loop.reason is not None:
                rows[place] = {**row, "path": None, "sha256": None, "reason": loop.reason}
            elif (size := self._copied(row)) is not None:
                rows[place] = {**row, "bytes": size}
            else:
                missing[place] = loop
        if missing:
            rows |= self._generator.made(missing, attempts)
        attempts.require_ownership()
        rejected = sum(loop.reason is not None and check_of(loop.reason) is not None for loop in loops)
        record = shard_record(self.output, shard, [rows[place] for place in range(len(loops))])
        return {**record, "failed": record["failed"] - rejected, "rejected": rejected}

    def _measured(self, shard: int, count: int) -> list[dict[str, Any]]:
        """Return the measured rows of the loops of a shard."""
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            number = self.first_rows[shard] + len(rows)
            source = bisect_right(self.first_candidates, number) - 1
            rows += measured_rows(self.candidates, source)[number - self.first_candidates[source] :]
        return rows[:count]

    def _copied(self, row: dict[str, Any]) -> int | None:
        """Copy the audio file of a candidate. Return its size in bytes, or None if the file is missing or damaged."""
        try:
            content = self.candidates.read(row["path"])
        except FileNotFoundError:
            return None
        if commits.sha256(content) != row["sha256"]:
            return None
        self.output.write(row["path"], content)
        return len(content)


def delivery_counts(record: Record) -> Counts:
    """Return the numbers of audio files, failures and rejections in the record of a shard."""
    files = record["rows"] - record["failed"] - record["rejected"]
    return {"files": files, "failed": record["failed"], "rejected": record["rejected"]}
