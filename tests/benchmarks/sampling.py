"""Sampling speed at 64x64 with 50 steps of DDIM, compared with the original's pipeline.

    python -m tests.benchmarks.sampling [--rounds 3] [--compiled] [--bf16]

The network is the original's (113.7 M parameters) with random weights. On two cores this project samples batches of 8
in two processes of one thread and in one process of two threads. The original samples at batch 1 and 8 with two
threads, in its own environment (.venv-original). A few steps are measured and scaled to 50. All contenders run in turn,
`rounds` times, and their medians are compared. CPU seconds, which suffer less from other work on the machine, are
printed next to wall time. The effect of bf16 is printed in levels of the finished images. The speed of bf16 is measured
only with `--bf16`: a processor without bf16 instructions emulates them, many times slower than fp32.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.mel import MelConfig, to_image
from audiodiff_core.models import build_network
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest, Item, Precision, Sampler

ROOT = Path(__file__).parents[2]
ORIGINAL = ROOT / ".venv-original" / "bin" / "python"
STEPS, BATCH = 50, 8
FEW, MORE = 1, 4
CORES = 2

Figures = dict[str, float]


def network() -> Any:
    torch.manual_seed(0)
    return build_network("ddpm-64", MelConfig(x_res=64, y_res=64, hop_length=1_024))


def sampler(unet: Any, profile: ExecutionProfile) -> Sampler:
    return Sampler(unet, Objective(prediction_type="epsilon", zero_terminal_snr=False).scheduler("ddim"), profile)


def work(threads: int, precision: Precision, compiled: bool) -> None:
    """Print a worker's seconds per item and step as JSON.

    The measurement starts when a line arrives on standard input, so that all workers start together.
    """
    torch.set_num_threads(threads)
    ours = sampler(network(), ExecutionProfile(batch_size=BATCH, precision=precision, compiled=compiled))

    def spent(steps: int) -> tuple[float, float]:
        began, used = time.perf_counter(), time.process_time()
        list(ours.sample(_items(BATCH, steps)))
        return time.perf_counter() - began, time.process_time() - used

    spent(1)
    print("ready", flush=True)
    sys.stdin.readline()
    few, more = spent(FEW), spent(MORE)
    wall, cpu = ((b - a) / (MORE - FEW) / BATCH for a, b in zip(few, more, strict=True))
    print(json.dumps({"wall": wall, "cpu": cpu}), flush=True)


def measured(commands: Sequence[Sequence[str]]) -> Figures:
    """Return seconds per item and step of parallel processes.

    `wall` is the time of the slowest process divided by the number of processes. `cpu` is the mean over the processes.
    """
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
    workers = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    lines = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        lines.append(worker.communicate()[0])
        assert worker.returncode == 0
    figures = [json.loads(line) for line in lines]
    return {
        "wall": max(one["wall"] for one in figures) / len(figures),
        "cpu": float(np.mean([one["cpu"] for one in figures])),
    }


def ours_command(threads: int, precision: Precision, compiled: bool = False) -> list[str]:
    return [
        sys.executable,
        "-m",
        "tests.benchmarks.sampling",
        "--work",
        str(threads),
        "--precision",
        precision,
        *(["--compiled"] if compiled else []),
    ]


def original_command(batch: int) -> list[str]:
    return [str(ORIGINAL), "tests/benchmarks/original/sample.py", str(batch), str(CORES)]


def bf16_difference(steps: int = 10, count: int = 2) -> float:
    """Return the mean difference in levels between images sampled in bf16 and in fp32.

    The output of the network is scaled down, so that the network does not amplify rounding.
    """
    unet = network()
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.1)
    images = []
    for precision in ("fp32", "bf16"):
        made = list(sampler(unet, ExecutionProfile(batch_size=count, precision=precision)).sample(_items(count, steps)))
        made.sort(key=lambda one: one[0].request.seed)
        images.append(np.stack([to_image(sample[0].numpy()) for _, sample in made]))
    return float(np.abs(images[0].astype(int) - images[1]).mean())


def _items(count: int, steps: int) -> list[Item]:
    return [Item(GenerateRequest(seed=seed, steps=steps), 64) for seed in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="measure the compiled network too: minutes more")
    parser.add_argument("--bf16", action="store_true", help="measure the speed of bf16 too")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        work(given.work, given.precision, given.compiled)
        return
    contenders = {
        "original, batch 1, 2 threads": [original_command(1)],
        "original, batch 8, 2 threads": [original_command(8)],
        "ours fp32, batch 8, 1 process of 2 threads": [ours_command(CORES, "fp32")],
        "ours fp32, batch 8, 2 processes of 1 thread": [ours_command(1, "fp32")] * CORES,
    }
    if given.bf16:
        contenders["ours bf16, batch 8, 2 processes of 1 thread"] = [ours_command(1, "bf16")] * CORES
    if given.compiled:
        contenders["ours fp32 compiled, batch 8, 2 processes of 1 thread"] = [
            ours_command(1, "fp32", compiled=True)
        ] * CORES
    seen: dict[str, list[Figures]] = {name: [] for name in contenders}
    for _ in range(given.rounds):
        for name, commands in contenders.items():
            seen[name].append(measured(commands))
    median = {
        name: {key: float(np.median([one[key] for one in figures])) for key in ("wall", "cpu")}
        for name, figures in seen.items()
    }
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    first, second = (median[name] for name in list(contenders)[:2])
    for name, figures in median.items():
        print(
            f"{name}: {60 / (figures['wall'] * STEPS):.2f} items a minute, "
            f"{figures['cpu']:.3f} s of CPU per item and step; "
            f"{first['wall'] / figures['wall']:.2f} times the original at batch 1, "
            f"{second['wall'] / figures['wall']:.2f} times at batch 8 "
            f"(by CPU {first['cpu'] / figures['cpu']:.2f}, {second['cpu'] / figures['cpu']:.2f})"
        )
    print(f"bf16 changes the images by {bf16_difference():.2f} levels on average")


if __name__ == "__main__":
    main()
