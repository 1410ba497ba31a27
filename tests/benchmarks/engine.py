"""Host time of the batch engine per step, and the price of a single loop.

    python -m tests.benchmarks.engine [--rounds 30]

1. 32 items of 64x64 on one core, with a network that returns its input: the time of a step, without and with the
   drawing of noise, beside 32 diffusers schedulers that step one by one. The noise of both is excluded from the ratio.
2. One loop of the tiny network: the interactive profile and the batch shapes 4 and 8, relative to batch shape 1.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from audiodiff_core.diffusion.methods import METHODS, SchedulerName
from audiodiff_core.diffusion.noise_schedule import Schedule
from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import build_network
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest, Item, Sampler
from audiodiff_core.sampling.pool import Pool

ITEMS, SIDE, STEPS = 32, 64, 50


class Identity(torch.nn.Module):
    """Network that returns its input."""

    config = SimpleNamespace(in_channels=1, out_channels=1, sample_size=SIDE)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (sample,)


def model(name: SchedulerName) -> Any:
    if name.startswith("flow"):
        return FlowMatchEulerDiscreteScheduler()
    return Objective(prediction_type="epsilon", zero_terminal_snr=False).scheduler("ddim")


def engine_step(name: SchedulerName, rounds: int) -> tuple[float, float]:
    """Return the median seconds of a step without its noise, and of the noise."""
    batch = Sampler(Identity(), model(name), ExecutionProfile(batch_size=ITEMS)).batch()
    for seed in range(ITEMS):
        batch.add(Item(GenerateRequest(seed=seed, steps=STEPS, scheduler=name), SIDE))
    draw, drawing = Pool._draw, [0.0]

    def timed_draw(pool: Pool) -> torch.Tensor:
        began = time.perf_counter()
        noise = draw(pool)
        drawing[0] += time.perf_counter() - began
        return noise

    Pool._draw = timed_draw  # type: ignore[method-assign, assignment]
    times = []
    try:
        for _ in range(rounds):
            drawing[0], began = 0.0, time.perf_counter()
            batch.step()
            times.append((time.perf_counter() - began - drawing[0], drawing[0]))
    finally:
        Pool._draw = draw  # type: ignore[method-assign]
    return float(np.median([step for step, _ in times])), float(np.median([noise for _, noise in times]))


def schedulers_step(name: SchedulerName, rounds: int) -> float:
    """Return the median seconds of a step by one diffusers scheduler per item, with its noise."""
    schedules = [Schedule(model(name), GenerateRequest(steps=STEPS, scheduler=name)) for _ in range(ITEMS)]
    samples = [torch.randn(1, 1, SIDE, SIDE) for _ in range(ITEMS)]
    generator = torch.Generator()
    times = []
    for call in range(rounds):
        began = time.perf_counter()
        for index, schedule in enumerate(schedules):
            prediction = schedule.network_input(samples[index], call)
            samples[index] = schedule.step(prediction, samples[index], call, generator)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of a call, after one call to warm up."""
    call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def single_loop() -> None:
    """Print the time of one loop by profile."""
    mel = MelConfig(x_res=64, y_res=64, hop_length=1_024)
    torch.manual_seed(0)
    unet, scheduler = build_network("tiny", mel), Objective().scheduler("ddim")
    threads = torch.get_num_threads()
    interactive = LoopPipeline(unet, scheduler, mel, "interactive")
    shapes = {size: ExecutionProfile(batch_size=size, threads=threads) for size in (1, 4, 8)}
    contenders = {"interactive": interactive} | {
        f"batch shape {size}": LoopPipeline(unet, scheduler, mel, profile) for size, profile in shapes.items()
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(5):
        for name, pipeline in contenders.items():
            times[name].append(seconds(lambda pipeline=pipeline: pipeline(steps=20), 1))  # type: ignore[misc]
    reference = float(np.median(times["batch shape 1"]))
    for name, values in times.items():
        median = float(np.median(values))
        print(f"one loop, {name}: {median:.2f} s, {median / reference:.2f} times batch shape 1")


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    single_loop()
    torch.set_num_threads(1)
    for name in METHODS:
        step, noise = engine_step(name, given.rounds)
        alternative = schedulers_step(name, given.rounds) - noise
        print(
            f"{name}: {1e3 * step:.2f} ms per step of {ITEMS} items, and {1e3 * noise:.2f} ms for noise; "
            f"diffusers' schedulers one by one {1e3 * alternative:.1f} ms, {alternative / step:.0f} times"
        )


if __name__ == "__main__":
    main()
