"""Measurements on one GPU, with random weights.

    python -m tests.benchmarks.gpu [--out FILE] [--quick] [--device cuda] [--sections NAME ...]

Every row goes to one JSON file and to a table. A row that fails, for example because memory is short, holds the reason.
The quick measurements take minutes. The complete ones compile every network at every batch size and take hours. On a
CPU (`--device cpu`), tiny networks show that the program runs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.gpu.equality import equality
from tests.benchmarks.gpu.plan import Plan, plan_for
from tests.benchmarks.gpu.report import Report
from tests.benchmarks.gpu.sampling import alternative, speed
from tests.benchmarks.gpu.stages import latent, training, vocoder

SECTIONS: dict[str, Callable[[Report, Plan], None]] = {
    "equality": equality,
    "vocoder": vocoder,
    "latent": latent,
    "training": training,
    "alternative": alternative,
    "speed": speed,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"), help="results file (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--device", default="cuda", help="torch device (default %(default)s)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    given = parser.parse_args()
    on_gpu = torch.device(given.device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error(f"device {given.device}: torch finds no GPU, use --device cpu to try the program")
    if on_gpu:
        torch.cuda.set_device(torch.device(given.device).index or 0)  # accelerate trains on the current device
    else:
        torch.set_num_threads(1)  # the networks are tiny
    report, plan = Report(given.out, given.device), plan_for(given.device, given.quick)
    for name in given.sections:
        SECTIONS[name](report, plan)
    report.print_tables()
    print(f"\n{given.out}")


if __name__ == "__main__":
    main()
