"""Rate and memory of jobs/generate.py, beside the engine and the vocoder alone.

    python -m tests.benchmarks.generate [--loops 256] [--rounds 3] [--memory-loops 5000] [--tables rate memory]

The network is the preset `tiny` for 64x64 images with random weights. The sampling method and the number of steps are
the defaults of the model.

Rate: the job generates the same seeds with one worker and with two workers. The rate counts from the start of the
first shard to the end of the job's work. The rate with start counts the whole command, with the start of Ray and of the
workers. The alternative is `LoopPipeline.generate` of audiodiff_core in as many processes of one thread, without Ray
and without files, from the first batch to the last loop. All contenders run in turn, `rounds` times, and the medians
are compared.

Memory: the job generates many loops of two steps with two workers. The table shows the median resident set size and
unique set size of the driver and of each worker while the first and the last fifth of the loops were generated.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from tests.benchmarks.generate_job import JobRun, Look, run_job, save_tiny_model
from tests.benchmarks.processes import ONE_THREAD, ROOT

TABLES = ("rate", "memory")
WORKERS = (1, 2)
MEMORY_STEPS = 2
MAX_GROWTH = 0.05
MIB = 1 << 20


def core(model: Path, seeds: Sequence[int]) -> None:
    """Generate seeds by the core alone when a line arrives on standard input, and print the seconds."""
    profile = ExecutionProfile.here()
    profile.prepare_process()
    pipeline = LoopPipeline.from_pretrained(model, profile)
    list(pipeline.generate([GenerateRequest(seed=seed, steps=2) for seed in range(profile.batch_size)]))
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    for _ in pipeline.generate([GenerateRequest(seed=seed) for seed in seeds]):
        pass
    print(time.perf_counter() - began, flush=True)


def core_rate(model: Path, loops: int, processes: int) -> float:
    """Return the loops per minute of processes that share the seeds and start together."""
    command = [sys.executable, "-m", "tests.benchmarks.generate", "--core", str(model), "--loops", str(loops)]
    running = [
        subprocess.Popen(
            [*command, "--share", str(share), str(processes)],
            cwd=ROOT,
            env=ONE_THREAD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for share in range(processes)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    seconds = [float(process.communicate()[0]) for process in running]
    return 60 * loops / max(seconds)


def rate_table(model: Path, folder: Path, loops: int, rounds: int) -> None:
    jobs: dict[int, list[JobRun]] = {workers: [] for workers in WORKERS}
    cores: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for number in range(rounds):
        for workers in WORKERS:
            jobs[workers].append(run_job(model, folder / f"{number}-{workers}", loops, workers))
            cores[workers].append(core_rate(model, loops, workers))
            print(
                f"round {number + 1}, {workers} workers: {jobs[workers][-1].rate:.1f} loops a minute, "
                f"core {cores[workers][-1]:.1f}",
                flush=True,
            )
    print(f"\n{loops} loops, loops a minute (medians of {rounds} rounds)\n")
    print("| workers | job | core alone | job / core | job with start | seconds of start and end |")
    print("|---|---|---|---|---|---|")
    for workers in WORKERS:
        rate, alone = _median(run.rate for run in jobs[workers]), _median(cores[workers])
        ratio = _median(run.rate / core for run, core in zip(jobs[workers], cores[workers], strict=True))
        whole = _median(run.rate_with_start for run in jobs[workers])
        start = _median(run.seconds - run.working_seconds for run in jobs[workers])
        print(f"| {workers} | {rate:.1f} | {alone:.1f} | {ratio:.3f} | {whole:.1f} | {start:.1f} |")
    gain = _median(two.rate / one.rate for one, two in zip(jobs[1], jobs[2], strict=True))
    alone = _median(two / one for one, two in zip(cores[1], cores[2], strict=True))
    print(f"\ntwo workers against one: {gain:.2f} (two processes of the core against one: {alone:.2f})", flush=True)


def memory_table(model: Path, folder: Path, loops: int) -> None:
    run = run_job(model, folder / "memory", loops, 2, "--steps", MEMORY_STEPS, watch_memory=True)
    fifth = loops // 5
    print(f"\nmemory in MiB while {loops} loops were generated in {run.working_seconds:.0f} s (medians)\n")
    print(f"| process | size | first {fifth} loops | last {fifth} loops | change |")
    print("|---|---|---|---|---|")
    measures: dict[str, Callable[[Look], int]] = {"resident": lambda look: look.resident, "own": lambda look: look.own}
    grown = []
    for process, looks in run.looks.items():
        parts = [look for look in looks if look.loops < fifth], [look for look in looks if look.loops >= loops - fifth]
        if not all(parts):  # a worker that was replaced
            print(f"| {process} | | {len(parts[0])} looks | {len(parts[1])} looks | |")
            continue
        for name, measure in measures.items():
            first, last = (_median(measure(look) for look in part) / MIB for part in parts)
            grown.append(last / first - 1)
            print(f"| {process} | {name} | {first:.0f} | {last:.0f} | {last / first - 1:+.1%} |")
    verdict = "at most" if max(map(abs, grown)) <= MAX_GROWTH else "more than"
    print(f"\nfirst and last loops differ by {verdict} {MAX_GROWTH:.0%}", flush=True)


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loops", type=int, default=256, help="loops of a run of the rate table")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender of the rate table")
    parser.add_argument("--memory-loops", type=int, default=5_000, help="loops of the memory table")
    parser.add_argument("--tables", choices=TABLES, nargs="+", default=TABLES)
    parser.add_argument("--core", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.core is not None:
        share, shares = given.share
        core(given.core, range(share, given.loops, shares))
        return
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="audiodiff-") as scratch:
        model = save_tiny_model(Path(scratch) / "model")
        if "rate" in given.tables:
            rate_table(model, Path(scratch), given.loops, given.rounds)
        if "memory" in given.tables:
            memory_table(model, Path(scratch), given.memory_loops)


if __name__ == "__main__":
    main()
