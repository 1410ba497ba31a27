"""Medians of wall, host and device time."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

WARMUP = 4
"""Calls before the first timed call. A compiled network compiles, warms up and records a graph in the first three."""


def wait(device: str) -> None:
    """Wait until a GPU is idle."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def median_s(call: Callable[[], object], device: str, repeats: int, warmup: int = 1) -> float:
    """Return the median wall time of a call in seconds, up to the end of its work on the device."""
    return medians_s({"": call}, device, repeats, warmup)[""]


def medians_s(
    calls: Mapping[str, Callable[[], object]], device: str, repeats: int, warmup: int = 1
) -> dict[str, float]:
    """Return the median wall time of each call in seconds. The calls are made in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(warmup + repeats):
        for name, call in calls.items():
            wait(device)
            began = time.perf_counter()
            call()
            wait(device)
            if round_ >= warmup:
                times[name].append(time.perf_counter() - began)
    return {name: float(np.median(seen)) for name, seen in times.items()}


def step_times(step: Callable[[], object], device: str, repeats: int) -> dict[str, float | None]:
    """Return times of a step in milliseconds.

    Args:
        step: Function that takes one step. It is called WARMUP + 2 * `repeats` times.
        device: The torch device.
        repeats: Number of timed steps.

    Returns:
        `step_ms`: mean of steps in a row, up to the end of the last step. `host_ms`: median time until a step returns,
        from an idle device. `device_ms`: median time between two events on the GPU, around one step from an idle
        device. It includes the gaps in which the GPU waits for the host. None on a CPU.
    """
    on_gpu = torch.device(device).type == "cuda"
    for _ in range(WARMUP):
        step()
    host, on_device = [], []
    for _ in range(repeats):
        wait(device)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if on_gpu else []
        began = time.perf_counter()
        if on_gpu:
            events[0].record()
        step()
        if on_gpu:
            events[1].record()
        host.append(time.perf_counter() - began)
        if on_gpu:
            events[1].synchronize()
            on_device.append(events[0].elapsed_time(events[1]))
    wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    wait(device)
    in_a_row = (time.perf_counter() - began) / repeats
    return {
        "step_ms": 1e3 * in_a_row,
        "host_ms": 1e3 * float(np.median(host)),
        "device_ms": float(np.median(on_device)) if on_gpu else None,
    }
