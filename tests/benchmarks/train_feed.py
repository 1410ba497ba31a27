"""Samples per second that data workers feed to a training worker whose network costs nothing.

    python -m tests.benchmarks.train_feed [--batches 200]

Batches of 32 images of 64x64 and 256x256 from the shipped loops are read, decoded and joined, without data workers and
with 1, 2 and 4 of them. Samples per core are samples per second of processor time of all processes. The alternative is
torch's DataLoader over a list of the same PNG files in memory, as a plain training script would write it.

The last column is a projection, not a measurement: the samples per second of 12 cores, which is what a node with 8 GPUs
and 96 cores has for each GPU.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, Dataset

from audiodiff_core.mel import Images, Mel, MelConfig
from audiodiff_core.mel.png import decode_png, encode_png
from audiodiff_core.mel.slices import mel_slices
from audiodiff_platform.mel_data.mel_dataset import MelDataset
from audiodiff_platform.mel_data.sample_order import DataOrder
from audiodiff_platform.train.batches import Batches, Reads, Share
from tests.benchmarks.train_data import SHARD_ROWS, simulate

BATCH_SIZE = 32
WARM_UP = 20
CORES_PER_GPU = 12
LOOPS = Path(__file__).parents[1] / "data" / "loops"


class Files(Dataset[torch.Tensor]):
    """PNG files in memory, decoded one by one."""

    def __init__(self, images: Images) -> None:
        self.files, self.shape = [encode_png(image) for image in images], images.shape[1:]

    def __len__(self) -> int:
        return len(self.files) * 1_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(decode_png(self.files[index % len(self.files)], self.shape))


def open_order(dataset: str) -> DataOrder:
    return DataOrder(MelDataset(dataset), seed=0)


def loop_images(side: int) -> Images:
    """Return SHARD_ROWS images of the shipped loops, which repeat."""
    mel = Mel(MelConfig(x_res=side, y_res=side))
    images = [piece.image for file in sorted(LOOPS.glob("*.flac")) for piece in mel_slices(file, mel)]
    return np.stack([images[row % len(images)] for row in range(SHARD_ROWS)])


def processor_s() -> float:
    """Return the processor time of this process and its descendants."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def measured(batches: Iterator[object], count: int) -> tuple[float, float]:
    """Return the samples per second, and per second of processor time."""
    for _ in range(WARM_UP):
        next(batches)
    began, processor = time.perf_counter(), processor_s()
    for _ in range(count):
        next(batches)
    samples = count * BATCH_SIZE
    return samples / (time.perf_counter() - began), samples / (processor_s() - processor)


def ours(folder: Path, data_workers: int, count: int) -> tuple[float, float]:
    reads = Reads(partial(open_order, str(folder)), Share(BATCH_SIZE, rank=0, world=1), first=0)
    batches = Batches(reads, data_workers, torch.device("cpu"), lambda batch: batch)
    try:
        return measured(iter(batches), count)
    finally:
        batches.close()


def plain(images: Images, data_workers: int, count: int) -> tuple[float, float]:
    context = "forkserver" if data_workers else None
    loader = DataLoader(
        Files(images), BATCH_SIZE, shuffle=True, num_workers=data_workers, multiprocessing_context=context
    )
    return measured(iter(loader), count)


def main() -> None:
    from tests.benchmarks import train_feed  # data workers can import this name, unlike __main__

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=200)
    count = parser.parse_args().batches
    torch.set_num_threads(1)
    print(f"samples per second, batches of {BATCH_SIZE}, {os.cpu_count()} cores")
    print("| side | data workers | ours | plain DataLoader | ours per core | plain per core | projection, 12 cores |")
    print("|---|---|---|---|---|---|---|")
    for side in (64, 256):
        images = loop_images(side)
        with tempfile.TemporaryDirectory(prefix="audiodiff-") as scratch:
            folder = Path(scratch) / "mel"
            simulate(folder, 4 * SHARD_ROWS, images)
            feeds: list[Callable[[int, int], tuple[float, float]]] = [
                partial(train_feed.ours, folder),
                partial(train_feed.plain, images),
            ]
            for data_workers in (0, 1, 2, 4):
                (rate, per_core), (plain_rate, plain_per_core) = (feed(data_workers, count) for feed in feeds)
                print(
                    f"| {side} | {data_workers} | {rate:,.0f} | {plain_rate:,.0f} | {per_core:,.0f} | "
                    f"{plain_per_core:,.0f} | {CORES_PER_GPU * per_core:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
