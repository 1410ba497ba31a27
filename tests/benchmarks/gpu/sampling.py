"""Steps of the batch engine, and diffusers' pipeline as the alternative."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import DDIMPipeline

from audiodiff_core.models import PRESETS, image_sides
from audiodiff_core.models.placement import placed
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest, Item, Precision, Sampler
from audiodiff_core.training.cost import BACKWARD_FLOPS, training_cost
from tests.benchmarks.gpu.plan import Plan, Shape, built
from tests.benchmarks.gpu.report import Report
from tests.benchmarks.gpu.timing import WARMUP, medians_s, step_times

STEPS = 50
"""Steps of an item, from which items per second are computed."""


def sampler_of(shape: Shape, profile: ExecutionProfile) -> Sampler:
    """Return the sampler of a network with random weights."""
    return Sampler(built(shape)[0], PRESETS[shape.preset].objective.scheduler("ddim"), profile)


def cases(
    plan: Plan, batch_sizes: tuple[int, ...], device: str, shapes: tuple[Shape, ...]
) -> Iterator[tuple[dict[str, Any], Shape, ExecutionProfile]]:
    """Yield (labels, network, profile) of all networks, precisions and batch sizes. Compiled networks come last."""
    for compiled in (False, True):
        for shape in shapes:
            for precision in plan.compiled_precisions if compiled else plan.precisions:
                for batch_size in batch_sizes:
                    if compiled and batch_size not in plan.compiled_batch_sizes:
                        continue
                    labels = {
                        "preset": shape.preset,
                        "side": shape.side,
                        "precision": precision,
                        "compiled": compiled,
                        "batch": batch_size,
                    }
                    yield labels, shape, profile_of(precision, batch_size, device, compiled)


def profile_of(precision: Precision, batch_size: int, device: str, compiled: bool = False) -> ExecutionProfile:
    """Return an execution profile with the threads of this process."""
    return ExecutionProfile(
        batch_size=batch_size,
        precision=precision,
        device=device,
        compiled=compiled,
        threads=torch.get_num_threads(),
    )


def speed(report: Report, plan: Plan) -> None:
    """Time the steps of full batches.

    `items_per_s` is the rate of items of 50 steps, without the end of an item. `bf16_peak_share` is the fraction of the
    GPU's dense bf16 peak, for every precision.
    """
    for labels, shape, profile in cases(plan, plan.batch_sizes, report.device, plan.shapes):
        report.measure("speed", labels, partial(_step, report, plan, shape, profile))


def alternative(report: Report, plan: Plan) -> None:
    """Time whole items, and diffusers' DDIMPipeline with the same network and the same batch.

    A ratio above 1 is the number of times that this project is as fast.
    """
    for labels, shape, profile in cases(plan, plan.alternative_batch_sizes, report.device, plan.alternatives):
        report.measure("alternative", labels, partial(_comparison, report, plan, shape, profile))


def _step(report: Report, plan: Plan, shape: Shape, profile: ExecutionProfile) -> Mapping[str, Any]:
    assert WARMUP + 2 * plan.repeats < STEPS, "the items would finish while they are timed"
    batch = sampler_of(shape, profile).batch()
    for item in _items(shape, profile.batch_size):
        batch.add(item)
    times = step_times(batch.step, report.device, plan.repeats)
    assert times["step_ms"] is not None
    items_per_s = profile.batch_size / (1e-3 * times["step_ms"] * STEPS)
    flops = training_cost(built(shape)[0], 1).flops_per_sample / (1 + BACKWARD_FLOPS)
    return {"items_per_s": items_per_s, **times, "bf16_peak_share": report.share(flops * STEPS, items_per_s)}


def _comparison(report: Report, plan: Plan, shape: Shape, profile: ExecutionProfile) -> Mapping[str, Any]:
    sampler = sampler_of(shape, profile)
    steps = WARMUP + plan.repeats
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: list(sampler.sample(_items(shape, profile.batch_size, steps)))
    }
    for name, memory_format in (("diffusers", torch.contiguous_format), ("channels_last", torch.channels_last)):
        pipeline = _pipeline(shape, profile, memory_format)
        contenders[name] = partial(_diffused, pipeline, profile, steps)
    seconds = medians_s(contenders, report.device, min(5, plan.repeats))
    return {
        "steps": steps,
        "ours_s": seconds["ours"],
        "diffusers_s": seconds["diffusers"],
        "ratio": seconds["diffusers"] / seconds["ours"],
        "ratio_channels_last": seconds["channels_last"] / seconds["ours"],
    }


def _pipeline(shape: Shape, profile: ExecutionProfile, memory_format: torch.memory_format) -> Any:
    unet = placed(built(shape)[0], profile.device, profile.dtype)
    unet.to(memory_format=memory_format)
    if profile.compiled:
        unet.compile(dynamic=False, mode="reduce-overhead" if profile.on_gpu else "default")
    pipeline = DDIMPipeline(unet, PRESETS[shape.preset].objective.scheduler("ddim"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _diffused(pipeline: Any, profile: ExecutionProfile, steps: int) -> torch.Tensor:
    """Return the images (batch, 1, height, width) of diffusers' pipeline on the CPU."""
    with profile.applied():
        generators = [torch.Generator().manual_seed(seed) for seed in range(profile.batch_size)]
        images: torch.Tensor = pipeline(
            profile.batch_size, generators, num_inference_steps=steps, output_type="pt"
        ).images
    return images.cpu()


def _items(shape: Shape, count: int, steps: int = STEPS) -> list[Item]:
    width = image_sides(built(shape)[0])[1]
    return [Item(GenerateRequest(seed=seed, steps=steps), width) for seed in range(count)]
