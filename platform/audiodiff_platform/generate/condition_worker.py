"""Worker of generate that embeds conditions, the audio and texts of requests, with the encoder of the model.

The parts are Parquet files with a row for each condition (`ENCODED_SCHEMA`).
"""

import io
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_core.embeddings import load_encoder
from audiodiff_core.embeddings.inputs import ENCODER_BATCH_SIZE
from audiodiff_core.pipeline.conditions import embedded
from audiodiff_core.sampling import ExecutionProfile
from audiodiff_core.sampling.conditions import Condition
from audiodiff_platform.generate.decoded_files import DecodedFiles
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.work import plan_files
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.shard_work import Counts, Record

PLANNED_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("field", pa.string()),
        ("text", pa.string()),
        ("origin", pa.string()),  # digest of the encoder, and size and version of the file
    ]
)
ENCODED_SCHEMA = pa.schema(
    [
        ("field", pa.string()),
        ("text", pa.string()),
        ("origin", pa.string()),
        ("encoding", pa.list_(pa.float32())),  # empty for a condition that cannot be embedded
        ("reason", pa.string()),  # why a condition cannot be embedded
    ]
)


class ConditionWorker:
    """A worker that embeds shards of conditions. Audio files are decoded in a child process.

    Args:
        output: URI of the folder with the plan, for the embeddings.
        encoder: The folder or Hugging Face id of the encoder.
        encoder_digest: The digest of the encoder at the start of the job.

    Raises:
        ValueError: The encoder has changed since the start of the job.
    """

    def __init__(self, output: str, encoder: str, encoder_digest: str) -> None:
        self.output, self.files = Folder(output), DecodedFiles()
        profile = ExecutionProfile.here()
        profile.prepare_process()
        self.encoder = load_encoder(encoder, profile.device)
        if (digest := self.encoder.digest) != encoder_digest:
            raise ValueError(
                f"encoder {encoder} has changed since the job began (digest {digest}, was {encoder_digest}): "
                "restore it and run the command again"
            )

    def shard(self, shard: int, attempts: Attempts) -> Record:
        """Write the embeddings of a shard, and return its commit record.

        The conditions are embedded in batches. After the death of a process, they are embedded one by one. A condition
        that kills two processes has no embedding.
        """
        planned = {
            Condition(row["field"], row["text"]): row["origin"] for row in plan_files.shard_rows(self.output, shard)
        }
        rows: list[dict[str, Any]] = []
        remaining = iter(planned)
        while batch := list(islice(remaining, 1 if attempts.deaths else ENCODER_BATCH_SIZE)):
            if attempts.deaths:
                if attempts.gives_up(batch[0].text):
                    rows.append(_row(batch[0], planned[batch[0]], (), attempts.reason))
                    continue
                attempts.start(batch[0].text)
            attempts.require_running()
            rows += self._rows(batch, planned)
        attempts.require_ownership()
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, ENCODED_SCHEMA), buffer, compression="zstd")
        name = f"data/{shard:06d}.parquet"
        self.output.write(name, buffer.getvalue())
        return {
            "rows": len(rows),
            "parts": {name: commits.sha256(buffer.getvalue())},
            "sizes": {name: len(buffer.getvalue())},
        }

    def _rows(self, batch: Sequence[Condition], planned: dict[Condition, str]) -> list[dict[str, Any]]:
        rows = []
        for condition, outcome in embedded(self.encoder, batch, self.files):
            if isinstance(outcome, ValueError):
                reason = str(outcome).removeprefix(f"{condition.field} ")
                rows.append(_row(condition, planned[condition], (), reason))
            else:
                rows.append(_row(condition, planned[condition], outcome.tolist(), None))
        return rows


def _row(condition: Condition, origin: str, encoding: Sequence[float], reason: str | None) -> dict[str, Any]:
    return {**condition._asdict(), "origin": origin, "encoding": encoding, "reason": reason}


def condition_counts(record: Record) -> Counts:
    """Return the number of embedded conditions of a committed shard."""
    return {"conditions": record["rows"]}
