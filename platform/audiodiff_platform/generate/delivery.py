"""Worker that delivers candidates: audio files and manifest rows of accepted ones, manifest rows of rejected ones."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from audiodiff_core.pipeline import Failure, Loop
from audiodiff_platform.generate.candidates import candidates_uri, measured_rows
from audiodiff_platform.generate.gate import check_of
from audiodiff_platform.generate.loop_files import shard_record
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.generate.request_plan import PlannedLoop, shard_loops
from audiodiff_platform.generate.worker import GenerateWorker
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.shard_work import Counts, Record

OF_A_FILE = ("path", "audio", "picture_path", "sha256")
"""Columns of the manifest that are null without a file."""


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
        rows: dict[int, dict[str, Any]] = {}
        missing: dict[int, PlannedLoop] = {}
        for place, (loop, row) in enumerate(zip(loops, self._measured(shard, len(loops)), strict=True)):
            attempts.require_running()
            assert row["id"] == loop.id, "row n of the plan is candidate n"
            if loop.reason is not None:
                rows[place] = {**row, **dict.fromkeys(OF_A_FILE), "reason": loop.reason}
            elif (files := self._copied(row)) is not None:
                rows[place] = {**row, "files": files}
            else:
                missing[place] = loop
        places = list(missing)
        for outcome in self._outcomes(list(missing.values())) if missing else ():
            rows[places[outcome.number]] = self._generator.loop_files.row(missing[places[outcome.number]], outcome)
            attempts.require_running()
        attempts.require_ownership()
        rejected = sum(loop.reason is not None and check_of(loop.reason) is not None for loop in loops)
        record = shard_record(self.output, shard, [rows[place] for place in range(len(loops))])
        return {**record, "failed": record["failed"] - rejected, "rejected": rejected}

    def _outcomes(self, loops: Sequence[PlannedLoop]) -> Iterator[Loop | Failure]:
        """Generate loops again."""
        return self._generator.pipeline.outcomes([loop.with_values for loop in loops], files=self._generator.files)

    def _measured(self, shard: int, count: int) -> list[dict[str, Any]]:
        """Return the measured rows of the loops of a shard."""
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            number = self.first_rows[shard] + len(rows)
            source = bisect_right(self.first_candidates, number) - 1
            rows += measured_rows(self.candidates, source)[number - self.first_candidates[source] :]
        return rows[:count]

    def _copied(self, row: dict[str, Any]) -> dict[str, tuple[str, int]] | None:
        """Copy the files of a candidate.

        Returns:
            Digest and size in bytes of each file, or None if a file is missing or the audio is damaged.
        """
        contents: dict[str, bytes] = {}
        for name in (row["path"], row["picture_path"]):
            if name is not None:
                try:
                    contents[name] = self.candidates.read(name)
                except FileNotFoundError:
                    return None
        files = {name: (commits.sha256(content), len(content)) for name, content in contents.items()}
        if files[row["path"]][0] != row["sha256"]:
            return None
        for name, content in contents.items():
            self.output.write(name, content)
        return files


def delivery_counts(record: Record) -> Counts:
    """Return the numbers of audio files, failures and rejections in the record of a shard."""
    files = record["rows"] - record["failed"] - record["rejected"]
    return {"files": files, "failed": record["failed"], "rejected": record["rejected"]}
