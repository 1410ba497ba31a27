"""Autoencoder, vocoder and training step."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from audiodiff_core.latents import decode_latents, encode_latents
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import PRESETS
from audiodiff_core.pipeline.codec import placed_vae
from audiodiff_core.sampling import ExecutionProfile, Precision
from audiodiff_core.training import TrainBatch, TrainState, train_step
from audiodiff_core.training.cost import training_cost
from audiodiff_core.vocoder import GriffinLim
from tests.benchmarks.gpu.plan import Plan, Shape, built, mel_of
from tests.benchmarks.gpu.report import Report
from tests.benchmarks.gpu.sampling import profile_of
from tests.benchmarks.gpu.timing import median_s

LEARNING_RATE = 1e-4


def latent(report: Report, plan: Plan) -> None:
    """Time the autoencoder, from and to the memory of the host."""
    for precision in ("fp32", "bf16"):
        for batch_size in plan.latent_batch_sizes:
            profile = profile_of(precision, batch_size, report.device)
            labels = {
                "vae": plan.latent.vae,
                "side": plan.latent.side,
                "precision": precision,
                "batch": batch_size,
            }
            report.measure("latent", labels, partial(_codec, plan, profile))


def vocoder(report: Report, plan: Plan) -> None:
    """Time the vocoder on the device, compared with the CPU."""
    for side in plan.vocoder_sides:
        for batch_size in plan.vocoder_batch_sizes:
            labels = {"side": side, "batch": batch_size}
            report.measure("vocoder", labels, partial(_vocoder, report.device, mel_of(side), batch_size, plan.repeats))


def training(report: Report, plan: Plan) -> None:
    """Time optimizer steps of one micro-batch that is on the device. Each step draws its noise."""
    for shape, batch_size in plan.training:
        for precision in plan.precisions:
            labels = {"preset": shape.preset, "side": shape.side, "precision": precision, "batch": batch_size}
            report.measure("training", labels, partial(_training, report, plan, shape, batch_size, precision))


def _codec(plan: Plan, profile: ExecutionProfile) -> Mapping[str, Any]:
    count = profile.batch_size
    vae = placed_vae(built(plan.latent)[1], profile)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, plan.latent.side, plan.latent.side, generator=generator) * 2 - 1
    with profile.applied():
        latents = encode_latents(vae, images, batch_size=count)
        seconds = {
            "encode_ms": median_s(partial(encode_latents, vae, images, None, count), profile.device, plan.repeats),
            "decode_ms": median_s(partial(decode_latents, vae, latents, count), profile.device, plan.repeats),
        }
    return {f"{name}_per_image": 1e3 * value / count for name, value in seconds.items()}


def _vocoder(device: str, mel: MelConfig, batch_size: int, repeats: int) -> Mapping[str, Any]:
    images = np.random.default_rng(0).integers(0, 256, (batch_size, mel.y_res, mel.x_res), dtype=np.uint8)
    few = images[:2]
    ours, cpu = GriffinLim(mel, device, batch_size=batch_size), GriffinLim(mel)
    with profile_of("fp32", batch_size, device).applied():
        images_per_s = batch_size / median_s(lambda: ours(images, range(batch_size)), device, repeats)
        cpu_per_s = len(few) / median_s(lambda: cpu(few, range(len(few))), "cpu", min(3, repeats))
    return {"images_per_s": images_per_s, "cpu_images_per_s": cpu_per_s, "ratio": images_per_s / cpu_per_s}


def _training(report: Report, plan: Plan, shape: Shape, batch_size: int, precision: Precision) -> Mapping[str, Any]:
    mixed: Literal["bf16", "no"] = "bf16" if precision == "bf16" else "no"
    AcceleratorState._reset_state(reset_partial_state=True)  # the state of a process is that of its first accelerator
    accelerator = Accelerator(mixed_precision=mixed, cpu=torch.device(report.device).type == "cpu")
    network = copy.deepcopy(built(shape)[0])
    cost = training_cost(network, batch_size, precision=mixed)
    state = TrainState(accelerator, network, PRESETS[shape.preset].objective, LEARNING_RATE, seed=0)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, shape.side, shape.side), dtype=np.uint8)
    batch = TrainBatch(torch.arange(batch_size), torch.from_numpy(images)).to(report.device)
    with profile_of(precision, batch_size, report.device).applied():
        step = partial(train_step, accelerator, state, [batch], LEARNING_RATE)
        seconds = median_s(step, report.device, plan.repeats, warmup=3)
    items_per_s = batch_size / seconds
    return {
        "items_per_s": items_per_s,
        "step_ms": 1e3 * seconds,
        "bf16_peak_share": report.share(cost.flops_per_sample, items_per_s),
        "expected_gib": cost.memory_bytes / 2**30,
    }
