"""prepare beside the original's loop: throughput in steady state, scaling, fixed cost, and memory of workers and driver.

    python -m tests.benchmarks.prepare [--files 144] [--rounds 3]

Each command runs whole, in turn, `rounds` times; a run on one file is subtracted from both sides, so that what is compared is the work
per file. The time to decode the same files, and do nothing else, is the floor.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.benchmarks.corpus import make_corpus

ROOT = Path(__file__).parents[2]
ORIGINAL = ROOT / ".venv-original" / "bin" / "python"
SECONDS_PER_FILE = 80
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def seconds_of(command: list[Any]) -> float:
    began = time.perf_counter()
    subprocess.run([str(part) for part in command], cwd=ROOT, env=ONE_THREAD, check=True, capture_output=True)
    return time.perf_counter() - began


def ours(folder: Path, out: Path, workers: int) -> list[Any]:
    return [sys.executable, "jobs/prepare.py", "--input_dir", folder, "--output_dir", out, "--num_workers", workers]


def fresh(out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    return out


DECODE = "import sys, soundfile\nfor file in sys.argv[1:]:\n    for block in soundfile.blocks(file, 65536, dtype='float32'):\n        pass\n"


def throughput(scratch: Path, files: int, rounds: int) -> None:
    corpus, single = scratch / "corpus", scratch / "single"
    minutes = files * SECONDS_PER_FILE / 60
    names = make_corpus(corpus, files, SECONDS_PER_FILE)
    make_corpus(single, 1, SECONDS_PER_FILE)
    runs: dict[str, Callable[[Path], float]] = {
        "original": lambda folder: seconds_of([ORIGINAL, "tests/benchmarks/original/loop.py", folder, scratch / "original.parquet"]),
        "ours, 1 worker": lambda folder: seconds_of(ours(folder, fresh(scratch / "out"), 1)),
        "ours, 2 workers": lambda folder: seconds_of(ours(folder, fresh(scratch / "out"), 2)),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    floor = []
    for round_ in range(rounds):
        for name, run in runs.items():
            times[name].append((run(single), run(corpus)))
            print(f"  round {round_ + 1}, {name}: one file {times[name][-1][0]:.1f} s, {files} files {times[name][-1][1]:.1f} s", flush=True)
        floor.append(seconds_of([sys.executable, "-c", DECODE, *names]))
    steady = {name: float(np.median([whole - one for one, whole in pairs])) for name, pairs in times.items()}
    print(f"prepare 256x256, {files - 1} Ogg files of {SECONDS_PER_FILE} s stereo 44.1 kHz, medians of {rounds}, one file's run subtracted:")
    for name, seconds in steady.items():
        speed = (minutes - SECONDS_PER_FILE / 60) * 60 / seconds
        print(f"  {name}: {seconds:.1f} s, {speed:.0f} times real time, {steady['original'] / seconds:.2f} times the original")
    print(f"  1 to 2 workers: {steady['ours, 1 worker'] / steady['ours, 2 workers']:.2f} times; decoding alone, one process: {np.median(floor):.1f} s")
    print(f"  fixed cost (a whole run on one file): {np.median([one for one, _ in times['ours, 1 worker']]):.1f} s")


def two_processes(seconds: float = 4) -> None:
    """What the second core adds to work that shares nothing: the most that two workers can gain here."""
    code = (
        f"import time, numpy\nx = numpy.ones((64, 2048), 'f4')\nend = time.time() + {seconds}\n"
        "n = 0\nwhile time.time() < end:\n    numpy.fft.rfft(x)\n    n += 1\nprint(n)"
    )
    counts = []
    for processes in (1, 2):
        running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=ONE_THREAD) for _ in range(processes)]
        counts.append(sum(int(process.communicate()[0]) for process in running))
    print(f"two independent processes do {counts[1] / counts[0]:.2f} times the work of one on this machine")


def worker_memory(scratch: Path) -> None:
    """The largest sum of a worker and its decoder, over one long file."""
    make_corpus(scratch / "long", 1, 3_600)
    command = [str(part) for part in ours(scratch / "long", fresh(scratch / "out"), 1)]
    process = subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peaks: dict[str, int] = {}
    while process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                command = child.cmdline()
                role = "worker" if command and command[0].startswith("ray::PrepareWorker") else "decoder" if "audiodiff_platform.slicer" in command else None
                if role:
                    peaks[role] = max(peaks.get(role, 0), child.memory_info().rss)
            except psutil.Error:
                continue
        time.sleep(0.05)
    parts = ", ".join(f"{role} {peak / 1e6:.0f} MB" for role, peak in peaks.items())
    print(f"peak memory over a file of an hour: {parts}, together {sum(peaks.values()) / 1e6:.0f} MB")


def driver_memory(scratch: Path, count: int = 100_000) -> None:
    """What a listing of many files costs the driver, in a process of its own."""
    folder = scratch / "many"
    for album in range(count // 100):
        (folder / f"an album of some name {album:05d}").mkdir(parents=True)
        for track in range(100):
            (folder / f"an album of some name {album:05d}" / f"{track:02d} a track of some name.mp3").touch()
    code = f"from tests.benchmarks.prepare import plan_all; plan_all({str(folder)!r}, {str(scratch / 'plan')!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def plan_all(folder: str, out: str) -> None:
    """Plans a folder, twice; prints by how much the memory's peak grew."""
    from audiodiff_platform.inputs import Inputs, Source
    from audiodiff_platform.plan import append_plan, cut, new_sources
    from audiodiff_platform.storage import Folder

    warm, output = Folder(f"{out}-warm"), Folder(out)
    append_plan(warm, cut([Source("a.mp3", 1, "1")], 600, first=0), {})  # loads the libraries
    new_sources(warm, [Source("a.mp3", 1, "1")])
    before = _peak_bytes()
    _, new = new_sources(output, Inputs(folder).sources())
    append_plan(output, cut(new, 600, first=0), {})
    count = len(new)
    del new
    new_sources(output, Inputs(folder).sources())
    grown = _peak_bytes() - before
    print(f"driver: {count:,} files planned and compared, peak {grown / 1e6:.0f} MB more, {grown / count:.0f} bytes a file")


def _peak_bytes() -> int:
    """This process's largest resident size since it began (getrusage's is also that of the process which began it)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=144)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        two_processes()
        throughput(Path(scratch), given.files, given.rounds)
        worker_memory(Path(scratch))
        driver_memory(Path(scratch))
    print(json.dumps({"load_at_end": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
