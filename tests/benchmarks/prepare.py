"""Throughput, scaling, fixed cost and memory of prepare, compared with the original's loop.

    python -m tests.benchmarks.prepare [--files 144] [--rounds 3] [--before CHECKOUT]

Each command runs whole and in turn, `rounds` times. A run on two files (one shard per file) is subtracted from the
runs of prepare and of the original, so the comparison is of the work per file. A checkout of an earlier version can be
measured in the same turns. Its requirements must be installed here. Decoding the same files alone gives the lower
bound of the time. The speedup of two plain processes, without Ray, is the upper bound for two workers on the machine
at that hour. CPU seconds are printed next to wall time, by role: driver, workers, their decoders, Ray.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.benchmarks.corpus import SAMPLE_RATE, make_corpus
from tests.benchmarks.processes import ONE_THREAD, ROOT, Run, peak_bytes, role, run

ORIGINAL = ROOT / ".venv-original" / "bin" / "python"
SECONDS_PER_FILE = 80
PAIR = "pair"
# Each file of the pair becomes one shard. Other runs have shards of the default size.
PAIR_SHARD_MINUTES = 0.5
UNMEASURED = ("--no-measure",)
"""Flags with which prepare does the work of the original alone."""


def ours(folder: Path, out: Path, workers: int, *flags: str) -> list[Any]:
    shards = ["--shard_minutes", PAIR_SHARD_MINUTES] if folder.name == PAIR else []
    return [
        sys.executable,
        "jobs/prepare.py",
        "--input_dir",
        folder,
        "--output_dir",
        out,
        "--num_workers",
        workers,
        *shards,
        *flags,
    ]


def fresh(out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    return out


LIBSNDFILE = (
    "import sys, soundfile\nfor file in sys.argv[1:]:\n"
    "    for block in soundfile.blocks(file, 65536, dtype='float32'):\n        pass\n"
)
FFMPEG = (
    "import sys, av\nfor file in sys.argv[1:]:\n    with av.open(file) as container:\n"
    "        for frame in container.decode(audio=0):\n            frame.to_ndarray()\n"
)
DECODE = (
    "import sys\nfrom audiodiff_core.audio import stream\nfor file in sys.argv[1:]:\n"
    f"    for block in stream(file, {SAMPLE_RATE}):\n        pass\n"
)
BY_HAND = (
    "import sys\nfrom audiodiff_core.mel.analysis import Mel, MelConfig\n"
    "from audiodiff_core.mel.png import encode_png\nfrom audiodiff_core.mel.slices import mel_slices\n"
    "for file in sys.argv[1:]:\n    for piece in mel_slices(file, Mel(MelConfig())):\n        encode_png(piece.image)\n"
)


def python(code: str, files: Sequence[Path]) -> list[Any]:
    return [sys.executable, "-c", code, *files]


def throughput(scratch: Path, files: int, rounds: int, before: Path | None) -> None:
    """Run the original, prepare and plain processes in turn and print their throughput.

    The plain processes do the same work. They show the speedup that the cores of the machine give at that hour.
    """
    corpus, pair, single = scratch / "corpus", scratch / PAIR, scratch / "single"
    names = make_corpus(corpus, files, SECONDS_PER_FILE)
    make_corpus(pair, 2, SECONDS_PER_FILE)
    make_corpus(single, 1, SECONDS_PER_FILE)
    pairs: dict[str, Callable[[Path], Run]] = {
        "original": lambda folder: run(
            [ORIGINAL, "tests/benchmarks/original/loop.py", folder, scratch / "original.parquet"]
        ),
        "ours, 1 worker": lambda folder: run(ours(folder, fresh(scratch / "out"), 1, *UNMEASURED)),
        "ours, 2 workers": lambda folder: run(ours(folder, fresh(scratch / "out"), 2, *UNMEASURED)),
        "ours with tempo and key, 2 workers": lambda folder: run(ours(folder, fresh(scratch / "out"), 2)),
    }
    if before is not None:
        pairs["before, 1 worker"] = lambda folder: run(ours(folder, fresh(scratch / "out"), 1), checkout=before)
        pairs["before, 2 workers"] = lambda folder: run(ours(folder, fresh(scratch / "out"), 2), checkout=before)
    alone: dict[str, Callable[[], Run]] = {
        "by hand, 1 process": lambda: run(python(BY_HAND, names)),
        "by hand, 2 processes": lambda: run(python(BY_HAND, names[::2]), python(BY_HAND, names[1::2])),
        "decoding alone, 1 process": lambda: run(python(DECODE, names)),
        "decoding alone by libsndfile": lambda: run(python(LIBSNDFILE, names)),
        "decoding alone by FFmpeg": lambda: run(python(FFMPEG, names)),
    }
    steady: dict[str, list[float]] = {name: [] for name in [*pairs, *alone]}
    one: dict[str, list[float]] = {name: [] for name in pairs}
    two: dict[str, list[float]] = {name: [] for name in pairs}
    for round_ in range(rounds):
        for name, command in pairs.items():
            smallest, small, large = command(single), command(pair), command(corpus)
            one[name].append(smallest.seconds)
            two[name].append(small.seconds)
            steady[name].append(large.seconds - small.seconds)
            print(
                f"  round {round_ + 1}, {name}: one file {smallest}, two files {small}, {files} files {large}",
                flush=True,
            )
        for name, whole in alone.items():
            took = whole()
            steady[name].append(took.seconds)
            print(f"  round {round_ + 1}, {name}: {took}", flush=True)
    print(
        f"prepare 256x256, {files - 2} Ogg files of {SECONDS_PER_FILE} s stereo 44.1 kHz, medians of {rounds} rounds,"
    )
    print("the run on two files subtracted from the original's and ours:")
    for name, seconds in steady.items():
        median = float(np.median(seconds))
        times = f", {ratio(steady['original'], seconds)} times the original" if name in pairs else ""
        print(
            f"  {name}: {median:.1f} s, "
            f"{(files - 2 * (name in pairs)) * SECONDS_PER_FILE / median:.0f} times real time{times}"
        )
    print(f"  1 to 2 workers: {ratio(steady['ours, 1 worker'], steady['ours, 2 workers'])} times", end="; ")
    print(f"1 to 2 plain processes: {ratio(steady['by hand, 1 process'], steady['by hand, 2 processes'])} times")
    for workers in ("1 worker", "2 workers"):
        if before is not None:
            print(
                f"  before to now, {workers}: {ratio(steady[f'before, {workers}'], steady[f'ours, {workers}'])} times"
            )
    print(f"  a run on one file: {', '.join(f'{name} {np.median(seconds):.1f} s' for name, seconds in one.items())}")
    print(f"  a run on two files: {', '.join(f'{name} {np.median(seconds):.1f} s' for name, seconds in two.items())}")


def ratio(slow: Sequence[float], fast: Sequence[float]) -> str:
    """Return the median, smallest and largest of `slow / fast` over the rounds, as text."""
    ratios = np.divide(slow, fast)
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def worker_memory(scratch: Path) -> None:
    """Print the peak memory of a worker and of its decoder over one file of an hour."""
    make_corpus(scratch / "long", 1, 3_600)
    command = [str(part) for part in ours(scratch / "long", fresh(scratch / "out"), 1)]
    process = subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peaks: dict[str, int] = {}
    while process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                what = role(child.cmdline())
                if what != "Ray":
                    peaks[what] = max(peaks.get(what, 0), child.memory_info().rss)
            except psutil.Error:
                continue
        time.sleep(0.05)
    parts = ", ".join(f"{what} {peak / 1e6:.0f} MB" for what, peak in peaks.items())
    print(f"peak memory over a file of an hour: {parts}, together {sum(peaks.values()) / 1e6:.0f} MB")


def driver_memory(scratch: Path, count: int = 100_000) -> None:
    """Print the driver's memory for a listing of many files, measured in a separate process."""
    folder = scratch / "many"
    for album in range(count // 100):
        (folder / f"an album of some name {album:05d}").mkdir(parents=True)
        for track in range(100):
            (folder / f"an album of some name {album:05d}" / f"{track:02d} a track of some name.mp3").touch()
    code = f"from tests.benchmarks.prepare import plan_all; plan_all({str(folder)!r}, {str(scratch / 'plan')!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def plan_all(folder: str, out: str) -> None:
    """Plan a folder twice and print the growth of the peak memory."""
    from audiodiff_platform.audio_files import Inputs, Source
    from audiodiff_platform.storage import Folder
    from audiodiff_platform.work.plan import append_plan, assign_shards, new_sources

    warm, output = Folder(f"{out}-warm"), Folder(out)
    append_plan(warm, assign_shards([Source("a.mp3", 1, "1")], 600, first=0), {})  # imports the libraries
    new_sources(warm, [Source("a.mp3", 1, "1")])
    before = peak_bytes()
    _, new = new_sources(output, Inputs(folder).sources())
    append_plan(output, assign_shards(new, 600, first=0), {})
    count = len(new)
    del new
    new_sources(output, Inputs(folder).sources())
    grown = peak_bytes() - before
    print(
        f"driver: {count:,} files planned and compared, peak {grown / 1e6:.0f} MB more, "
        f"{grown / count:.0f} bytes a file"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=144)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="checkout of an earlier version, measured in the same turns")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        throughput(Path(scratch), given.files, given.rounds, given.before)
        worker_memory(Path(scratch))
        driver_memory(Path(scratch))
    print(json.dumps({"load_at_end": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
