"""Peak memory of one optimizer step of the original's network, compared with the estimate.

    python -m tests.benchmarks.training_memory

The estimate is that of `audiodiff_core.training.cost`. Each case runs in a separate process. Gradients are accumulated
over two micro-batches. The first micro-batch is one small image: its gradients take as much memory as those of any
batch. The peak occurs in the second micro-batch. The result is the peak resident set of the process on a CPU in
float32, minus its size before the network was built (interpreter and libraries).
"""

import subprocess
import sys
import time

import numpy as np
import torch
from accelerate import Accelerator

from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PRESETS, PresetName, build_network
from audiodiff_core.training import TrainBatch, TrainState, train_step
from audiodiff_core.training.cost import training_cost
from tests.benchmarks.processes import peak_bytes

CASES: list[tuple[PresetName, int, int, bool]] = [  # preset, side, batch, gradient checkpointing
    ("ddpm-64", 64, 2, False),
    ("ddpm-64", 64, 2, True),
    ("ddpm-256", 256, 2, True),
]
SMALL = TrainBatch(torch.tensor([0]), torch.zeros(1, 32, 32, dtype=torch.uint8))


def measure(preset: PresetName, side: int, batch: int, checkpointing: bool) -> str:
    mel = MelConfig(x_res=side, y_res=side)
    with torch.device("meta"):
        cost = training_cost(build_network(preset, mel), batch, gradient_checkpointing=checkpointing)
    before = peak_bytes() / 2**30
    accelerator = Accelerator(cpu=True)
    state = TrainState(
        accelerator,
        build_network(preset, mel),
        PRESETS[preset].objective,
        1e-4,
        seed=0,
        gradient_checkpointing=checkpointing,
    )
    # The first step allocates the moments of the optimizer.
    train_step(accelerator, state, [SMALL], 0.0)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, side, side), dtype=np.uint8))
    began = time.monotonic()
    train_step(accelerator, state, [SMALL, TrainBatch(torch.arange(1, batch + 1), images)], 1e-4)
    return (
        f"{preset} at {side}x{side}, batch {batch}, gradients accumulated, "
        f"gradient checkpointing {'on' if checkpointing else 'off'}: "
        f"peak {peak_bytes() / 2**30 - before:.2f} GiB beside {before:.2f} of libraries; "
        f"estimated {cost.memory_bytes / 2**30:.2f} "
        f"({time.monotonic() - began:.0f} s)"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        print(measure(*CASES[int(sys.argv[1])]), flush=True)
    else:
        for case in range(len(CASES)):
            subprocess.run([sys.executable, "-m", "tests.benchmarks.training_memory", str(case)], check=True)
