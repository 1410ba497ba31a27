"""The format of a folder of generated loops.

The job generate writes the folder. The job evaluate, reports and servers read it.
"""

import hashlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.index import INDEX, CommittedPart

LOOPS_FORMAT_VERSION = 4
LOOPS_SETTINGS = "generate.json"

MANIFEST_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("kind", pa.string()),  # the columns up to `overlap` are the request; null where its kind has no such field
        ("seed", pa.int64()),
        ("steps", pa.int32()),
        ("scheduler", pa.string()),
        ("eta", pa.float64()),
        ("guidance_scale", pa.float64()),
        ("guidance_rescale", pa.float64()),
        ("width", pa.int32()),
        ("bars", pa.int32()),
        ("bpm", pa.float64()),
        ("requested_duration_s", pa.float64()),
        ("seamless", pa.bool_()),
        ("encoding", pa.string()),  # name of the encoding
        ("like", pa.string()),
        ("prompt", pa.string()),
        ("encoding_values", pa.list_(pa.float32())),
        ("source", pa.string()),
        ("sources", pa.list_(pa.string())),
        ("seeds", pa.list_(pa.int64())),
        ("position", pa.float64()),
        ("slice", pa.int64()),
        ("strength", pa.float64()),
        ("start_step", pa.int32()),
        ("regenerate", pa.list_(pa.list_(pa.float64()))),
        ("refinements", pa.int32()),
        ("overlap", pa.float64()),
        ("batch_size", pa.int32()),
        ("precision", pa.string()),
        ("device", pa.string()),
        ("compiled", pa.bool_()),
        ("threads", pa.int32()),
        ("model_digest", pa.string()),
        ("mel_digest", pa.string()),
        ("sha256", pa.string()),
        ("duration_s", pa.float64()),
        ("tempo_bpm", pa.float64()),  # null if no tempo was detected
        ("tempo_confidence", pa.float64()),
        ("seam_score", pa.float64()),
        ("level_db", pa.float64()),
        ("reason", pa.string()),  # why the loop could not be generated; such a loop has no file
    ],
    metadata={"audiodiff_format_version": str(LOOPS_FORMAT_VERSION)},
)


def committed_files(folder: Folder, subfolder: str) -> Iterator[CommittedPart]:
    """Yield the committed files of a subfolder of a finished folder, without their row groups.

    The index is read as a stream, because a folder can hold millions of loops.

    Args:
        folder: A folder of generated loops.
        subfolder: The subfolder: audio or manifest.

    Raises:
        ValueError: The folder is not finished, or a job is adding loops.
    """
    try:
        summary = folder.read_json(commits.SUCCESS)
    except FileNotFoundError:
        raise ValueError(
            f"{folder.uri}: generation is not finished (no {commits.SUCCESS}): run jobs/generate.py to its end"
        ) from None
    with folder.reached(INDEX), folder.filesystem.open(folder.path(INDEX), "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != summary.get("index_sha256"):
            raise ValueError(
                f"{folder.uri}: {INDEX} does not match the digest in {commits.SUCCESS}: run jobs/generate.py to its end"
            )
        file.seek(0)
        with pq.ParquetFile(file) as index:
            for batch in index.iter_batches(columns=["shard", "path", "bytes", "sha256"]):
                for row in batch.to_pylist():
                    if row["path"].startswith(f"{subfolder}/"):
                        yield CommittedPart(row["shard"], row["path"], None, row["bytes"], row["sha256"])
