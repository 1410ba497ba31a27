"""Samples per second of this project's training step, compared with the original trainer's step.

    python -m tests.benchmarks.training_core

The steps run in turn in one process. The original's scripts/train_unet.py is not part of its package, so its step is
reconstructed here. The loader converts each sample to a float tensor. The loss is the mean squared error of epsilon
over DDPMScheduler. `accelerator.accumulate`, clipping, unfused AdamW, a learning rate scheduler and diffusers' EMAModel
follow after every micro-step. Both steps train the same network on the same images at the same batch size, with one
thread.
"""

import os
import time
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.models import PresetName, build_network
from audiodiff_core.training import TrainBatch, TrainState, train_step

PAIRS = 7
CASES: list[tuple[PresetName, int, int, int]] = [  # preset, side, batch, accumulation
    ("tiny", 64, 16, 1),
    ("tiny", 64, 4, 4),
    ("tiny", 32, 16, 1),
    ("ddpm-64", 64, 2, 1),
]


def originals_step(preset: PresetName, images: Images, accumulation: int) -> Callable[[], None]:
    """Return an optimizer step of the original's trainer.

    Args:
        preset: Network to train.
        images: Images of shape (batch, side, side), used for every micro-batch.
        accumulation: Micro-batches per optimizer step.
    """
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    torch.manual_seed(0)
    model = build_network(preset, MelConfig(x_res=images.shape[2], y_res=images.shape[1]))
    scheduler = DDPMScheduler(num_train_timesteps=1_000)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    model, optimizer, rates = accelerator.prepare(
        model, adam, get_scheduler("cosine", adam, num_warmup_steps=500, num_training_steps=100_000)
    )
    ema = EMAModel(model.parameters(), inv_gamma=1.0, power=0.75, decay=0.9999, use_ema_warmup=True)

    def step() -> None:
        for _ in range(accumulation):
            clean = torch.stack(
                [(torch.from_numpy(image).float().div(255).unsqueeze(0) - 0.5) / 0.5 for image in images]
            )
            noise = torch.randn(clean.shape)
            timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(clean),))
            noisy = scheduler.add_noise(clean, noise, timesteps)
            with accelerator.accumulate(model):
                loss = torch.nn.functional.mse_loss(model(noisy, timesteps)["sample"], noise)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rates.step()
                ema.step(model.parameters())
                optimizer.zero_grad()
            loss.detach().item()

    return step


def our_step(preset: PresetName, images: Images, accumulation: int) -> Callable[[], None]:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    network = build_network(preset, MelConfig(x_res=images.shape[2], y_res=images.shape[1]))
    state = TrainState(accelerator, network, Objective(prediction_type="epsilon"), 1e-4, seed=0)
    numbers = torch.arange(len(images) * accumulation).split(len(images))
    batches = [TrainBatch(numbers_of_batch, torch.from_numpy(images)) for numbers_of_batch in numbers]

    def step() -> None:
        train_step(accelerator, state, batches, 1e-4)

    return step


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        "the original's step is a reconstruction"
    )
    for preset, side, batch, accumulation in CASES:
        images = np.random.default_rng(0).integers(0, 256, (batch, side, side), dtype=np.uint8)
        steps = (our_step(preset, images, accumulation), originals_step(preset, images, accumulation))
        seconds: tuple[list[float], list[float]] = ([], [])
        for round_ in range(PAIRS + 1):
            for step, times in zip(steps, seconds, strict=True):
                began = time.process_time()
                step()
                if round_:
                    times.append(time.process_time() - began)
        samples = batch * accumulation
        ours, theirs = (samples / float(np.median(times)) for times in seconds)
        ratios = np.array(seconds[1]) / np.array(seconds[0])
        print(
            f"{preset} at {side}x{side}, batch {batch}, accumulation {accumulation}: "
            f"ours {ours:.2f} samples/s, the original's {theirs:.2f}, "
            f"{np.median(ratios):.2f} times as fast (pairs {ratios.min():.2f} to {ratios.max():.2f})",
            flush=True,
        )
