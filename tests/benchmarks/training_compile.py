"""Break-even of `torch_compile`: the training time after which a compiled network has made up for its compilation.

    python -m tests.benchmarks.training_compile [--device cuda] [--batch 16] [--side 64] [--presets tiny]

Steps of the network as it is and of the compiled network run in turn in one process. The compilation is the time of the
first two compiled steps beyond two later ones. Caches of earlier compilations are not used.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from accelerate import Accelerator

from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PRESETS, PresetName, build_network
from audiodiff_core.training import TrainBatch, TrainState, train_step

ROUNDS = 7
RATE = 1e-3


def main() -> None:
    """Measure the presets in turn, and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=["tiny"])
    options = parser.parse_args()
    torch.compiler.config.force_disable_caches = True
    print("| preset | compilation (s) | step (s) | compiled step (s) | break-even (steps) | break-even (s) |")
    print("|---|---|---|---|---|---|", flush=True)
    for preset in options.presets:
        print_row(preset, options.side, options.batch, options.device == "cpu")


def print_row(preset: PresetName, side: int, batch: int, cpu: bool) -> None:
    """Measure one preset and print its row."""
    accelerator = Accelerator(cpu=cpu)
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side), np.uint8)
    mel = MelConfig(x_res=side, y_res=side)

    def state(compiled: bool) -> TrainState:
        return TrainState(
            accelerator, build_network(preset, mel), PRESETS[preset].objective, RATE, 0, compiled=compiled
        )

    def seconds(trained: TrainState) -> float:
        samples = TrainBatch(torch.arange(batch), torch.from_numpy(images))
        began = time.perf_counter()
        loss, _ = train_step(accelerator, trained, [samples], RATE)
        loss.item()
        return time.perf_counter() - began

    plain, compiled = state(False), state(True)
    seconds(plain), seconds(plain)
    first = seconds(compiled) + seconds(compiled)
    pairs = [(seconds(plain), seconds(compiled)) for _ in range(ROUNDS)]
    step, compiled_step = (statistics.median(times) for times in zip(*pairs, strict=True))
    compilation = first - 2 * compiled_step
    cells = [f"{compilation:.1f}", f"{step:.3f}", f"{compiled_step:.3f}"]
    if compiled_step < step:
        steps = compilation / (step - compiled_step)
        cells += [f"{steps:,.0f}", f"{steps * step:,.0f}"]
    else:
        cells += ["never", "never"]
    print(f"| {' | '.join([preset, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
