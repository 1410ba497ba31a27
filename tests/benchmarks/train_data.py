"""Memory and speed of reading training data as the dataset grows.

    python -m tests.benchmarks.train_data

Datasets of 1,000 to 1,000,000 rows of 64x64 are simulated: one shard of 1,000 rows is linked under as many names as
needed. The files, commits and row groups are those of a dataset of that size. Only the content repeats. A separate
process opens each dataset and reads batches of 16 in the data order, as training without data workers does. The memory
of reading is the peak of the process minus its memory before it opened the dataset.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.mel.png import encode_png
from audiodiff_platform.mel_data.mel_dataset import (
    DATASET_FORMAT_VERSION,
    MEL_CONFIG,
    VALIDATION_SPLIT,
    MelDataset,
    data_file,
)
from audiodiff_platform.mel_data.sample_order import DataOrder
from audiodiff_platform.mel_data.slice_schema import UNMEASURED_SCHEMA
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.train.batches import Batches, Reads, Share
from tests.benchmarks.processes import peak_bytes

SHARD_ROWS, GROUP_ROWS = 1_000, 125
BATCH_SIZE = 16
ROOT = Path(__file__).parents[2]


def simulate(folder: Path, rows: int, images: Images | None = None) -> None:
    """Write a finished dataset of `rows` rows.

    Args:
        folder: Folder of the dataset.
        rows: Number of rows, a multiple of SHARD_ROWS.
        images: Images (SHARD_ROWS, side, side) that repeat in each shard. None for noise of 64x64.
    """
    output = Folder(str(folder))
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (SHARD_ROWS, 64, 64), np.uint8)
    mel = MelConfig(x_res=images.shape[2], y_res=images.shape[1])
    table = [
        {
            "image": {"bytes": encode_png(image), "path": None},
            "audio_file": f"track {row // 10}.flac",
            "slice": row % 10,
            "source_sha256": f"{row // 10:064x}",
            "start_s": float(row % 10),
            "duration_s": 1.0,
            "reference_db": 0.0,
        }
        for row, image in enumerate(images)
    ]
    (folder / "data").mkdir(parents=True)
    first = folder / data_file(0)
    pq.write_table(pa.Table.from_pylist(table, UNMEASURED_SCHEMA), first, row_group_size=GROUP_ROWS)
    groups = [GROUP_ROWS] * (SHARD_ROWS // GROUP_ROWS)
    records: dict[int, dict[str, Any]] = {}
    for shard in range(rows // SHARD_ROWS):
        if shard:
            os.link(first, folder / data_file(shard))
        parts = {data_file(shard): "simulated"}
        records[shard] = {
            "rows": SHARD_ROWS,
            "row_groups": groups,
            VALIDATION_SPLIT: {"rows": 0, "row_groups": []},
            "parts": parts,
        }
    output.write(MEL_CONFIG, mel.to_json().encode())
    commits.succeed(output, {"format_version": DATASET_FORMAT_VERSION, "digest": f"simulated {rows}"}, records)


def read(folder: Path, batches: int) -> dict[str, float]:
    """Open a dataset, read `batches` batches, and return the time and memory used."""
    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    dataset = MelDataset(str(folder))
    reads = Reads(lambda: DataOrder(dataset, seed=0), Share(BATCH_SIZE, rank=0, world=1), first=0)
    batches_read = Batches(reads, 0, torch.device("cpu"), lambda batch: batch)
    stream = iter(batches_read)
    next(stream)
    opened = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(batches):
        next(stream)
    seconds = time.perf_counter() - began
    batches_read.close()
    return {
        "rows": dataset.rows,
        "opened_s": opened,
        "samples_per_s": batches * BATCH_SIZE / seconds,
        "peak_mb": (peak_bytes() - before) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=1_000)
    parser.add_argument("--read", type=Path, help="only reads a simulated dataset, in this process")
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read, options.batches)))
        return
    print(f"training data, 64x64, {options.batches} batches of {BATCH_SIZE}, one worker")
    for rows in (1_000, 10_000, 100_000, 1_000_000):
        with tempfile.TemporaryDirectory(prefix="audiodiff-") as scratch:
            simulate(Path(scratch) / "mel", rows)
            command = [
                sys.executable,
                "-m",
                "tests.benchmarks.train_data",
                "--read",
                str(Path(scratch) / "mel"),
                "--batches",
                str(options.batches),
            ]
            figures = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
            print(
                f"{figures['rows']:>9,} rows: {figures['peak_mb']:6.0f} MB more at the peak, "
                f"first batch after {figures['opened_s']:.2f} s, then {figures['samples_per_s']:,.0f} samples/s"
            )


if __name__ == "__main__":
    main()
