"""Networks that are trained for few calls, beside the recipe, after the same processor time.

    python -m tests.benchmarks.few_steps [--seconds 480] [--seeds 0] [--ways NAME ...] [--calls 4 2 1]

All networks are `tiny-folded`, trained on the slices of the tiny recipe on one thread, with the batch size and the rate
of the recipe. Distances are those of the mel images of 128 loops to the training images by `logmel-stats`.

recipe     v-prediction, sampled by UniPC
flow       rectified flow, sampled by Euler's method
shortcut   a flow for half of the time, then a shortcut model (Frans et al., "One Step Diffusion via Shortcut Models",
           2024, algorithm 1): the network is told the length of the step, and one step is trained to be two of half its
           length by the averaged weights
mean flow  a flow for half of the time, then MeanFlow (Geng et al., "Mean Flows for One-step Generative Modeling", 2025,
           algorithm 1): the network learns the mean velocity over the step by its derivative, a central difference
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel

from audiodiff_core.evaluation.features import logmel_stats
from audiodiff_core.mel import Images, to_image, to_model
from audiodiff_core.models import PRESETS, PresetName, build_network, folded
from audiodiff_core.models.folding import FOLD, unfolded
from audiodiff_core.training import learning_rate
from audiodiff_core.training.state import MAX_GRADIENT_NORM
from audiodiff_core.training.weight_average import EMA_DECAY, WeightAverage
from audiodiff_platform.mel_data.mel_dataset import MelDataset
from tests.benchmarks.networks import COUNT, TRAIN, WAYS, distance_cells, images_of, trained
from tests.benchmarks.recipe import prepare

PRESET: PresetName = "tiny-folded"
RECIPE_WAY = WAYS["folded, batch 4, rate 2e-3"]
TIME_SCALE = 1_000.0
"""Timestep of pure noise, as in the embedding of the recipe's network."""
SHORTEST_STEP = 1 / 8
"""Shortest step that is trained to be two steps. Its halves are trained as velocities."""
BOOTSTRAPPED = 1 / 4
"""Share of a batch that learns a step by two of half its length."""
SAME_TIMES = 3 / 4
"""Share of a batch of MeanFlow whose step has length 0."""
DIFFERENCE = 0.005
"""Half of the difference of times by which MeanFlow's derivative is measured."""
WEIGHT_FLOOR = 1e-3
"""Constant of the weight of MeanFlow's loss, which is the inverse of the squared error plus this constant."""

Loss = Callable[[Any, Any, torch.Tensor, torch.Tensor], torch.Tensor]
"""Loss of a network, its average, clean samples and noise."""


def velocity(network: Any, noisy: torch.Tensor, times: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Return the prediction of the velocity from noise at `times` (batch,) over steps of a length (batch,)."""
    prediction: torch.Tensor = network(noisy, TIME_SCALE * times, TIME_SCALE * steps, return_dict=False)[0]
    return prediction


def noised(clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Return samples on the straight lines from clean samples at time 0 to noise at time 1."""
    return torch.lerp(clean, noise, times.reshape(-1, 1, 1, 1))


def logit_normal(count: int) -> torch.Tensor:
    return torch.randn(count).sigmoid()


def flow_loss(network: Any, average: Any, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the loss of a rectified flow."""
    times = logit_normal(len(clean))
    predicted = velocity(network, noised(clean, noise, times), times, torch.zeros_like(times))
    return (predicted - (noise - clean)).square().mean()


def shortcut_loss(network: Any, average: Any, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the loss of a shortcut model."""
    own = round(BOOTSTRAPPED * len(clean))
    levels = round(np.log2(1 / SHORTEST_STEP))
    steps = 0.5 ** torch.randint(0, levels + 1, (own,)).float()
    times = steps * (1 + (torch.rand(own) / steps).floor())
    start, half = noised(clean[:own], noise[:own], times), steps / 2
    with torch.no_grad():
        told = torch.where(half < SHORTEST_STEP, 0.0, half)
        first = velocity(average, start, times, told)
        middle = start - half.reshape(-1, 1, 1, 1) * first
        target = (first + velocity(average, middle, times - half, told)) / 2
    bootstrap = (velocity(network, start, times, steps) - target).square().mean()
    return (own * bootstrap + (len(clean) - own) * flow_loss(network, average, clean[own:], noise[own:])) / len(clean)


def mean_flow_loss(network: Any, average: Any, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the loss of MeanFlow."""
    times, ends = torch.stack([logit_normal(len(clean)), logit_normal(len(clean))]).sort(dim=0, descending=True)[0]
    steps = torch.where(torch.rand(len(clean)) < SAME_TIMES, 0.0, times - ends)
    noisy, direction = noised(clean, noise, times), noise - clean
    predicted, target = velocity(network, noisy, times, steps), direction.clone()
    if len(own := steps.nonzero()[:, 0]):
        with torch.no_grad():
            ahead, behind = (
                velocity(network, noisy[own] + by * direction[own], times[own] + by, steps[own] + by)
                for by in (DIFFERENCE, -DIFFERENCE)
            )
        derivative = (ahead - behind) / (2 * DIFFERENCE)
        target[own] -= steps[own].reshape(-1, 1, 1, 1) * derivative
    errors = (predicted - target).square().mean(dim=(1, 2, 3))
    return (errors / (errors.detach() + WEIGHT_FLOOR)).mean()


LOSSES: dict[str, tuple[Loss, Loss]] = {
    "flow": (flow_loss, flow_loss),
    "shortcut": (flow_loss, shortcut_loss),
    "mean flow": (flow_loss, mean_flow_loss),
}
"""The losses of the first and of the second half of the time."""
NAMES = ("recipe", *LOSSES)


def trained_flow(name: str, dataset: MelDataset, seconds: float, seed: int) -> tuple[Any, int]:
    """Train a network for a processor time, and return its averaged copy and the number of its steps."""
    torch.manual_seed(seed)
    images = dataset.all_images()
    config = {name: value for name, value in build_network(PRESET, dataset.mel).config.items() if name != FOLD}
    network = UNet2DModel.from_config(config, class_embed_type="timestep")
    copied = copy.deepcopy(network).requires_grad_(False).eval()
    average = WeightAverage(list(network.parameters()), EMA_DECAY)
    average.weights = list(copied.parameters())
    optimizer = torch.optim.AdamW(network.parameters(), RECIPE_WAY.rate, fused=True)
    order, step, began = np.random.default_rng(seed), 0, time.process_time()
    while (passed := (time.process_time() - began) / seconds) < 1:
        chosen = order.choice(len(images), RECIPE_WAY.batch, replace=False)
        clean = folded(to_model(torch.from_numpy(images[chosen]).unsqueeze(1)), PRESETS[PRESET].fold)
        loss = LOSSES[name][passed >= 0.5](network, copied, clean, torch.randn_like(clean))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(RECIPE_WAY.rate, step, TRAIN["lr_warmup_steps"], passed)
        optimizer.step()
        average.update(list(network.parameters()))
        step += 1
    return copied, step


@torch.no_grad()
def flow_images(network: Any, dataset: MelDataset, calls: int, is_told: bool) -> Images:
    """Generate images by Euler's method in equal steps.

    Args:
        network: The network.
        dataset: The data set whose images are generated.
        calls: Number of steps.
        is_told: Whether the network is told the length of a step, or 0.
    """
    generator, side = torch.Generator().manual_seed(0), (1, dataset.mel.y_res, dataset.mel.x_res)
    samples = folded(torch.randn(COUNT, *side, generator=generator), PRESETS[PRESET].fold)
    for index in range(calls):
        times = torch.full((COUNT,), 1 - index / calls)
        samples -= velocity(network, samples, times, torch.full((COUNT,), is_told / calls)) / calls
    return to_image(unfolded(samples, PRESETS[PRESET].fold)[:, 0].numpy())


def main() -> None:
    """Train and measure the contenders in turn, and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480.0, help="processor time of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--calls", type=int, nargs="+", default=[4, 2, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = " | ".join(f"{calls} calls: Fréchet | kernel" for calls in options.calls)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare(folder / "dataset")
        dataset = MelDataset(str(folder / "dataset"))
        real = logmel_stats(dataset.all_images())
        print(f"| way | seed | steps | {columns} |\n|{'---|' * (3 + 2 * len(options.calls))}", flush=True)
        for seed in options.seeds:
            for name in options.ways:
                if name == "recipe":
                    model, state = trained(RECIPE_WAY, dataset, options.seconds, seed, folder / f"{seed}")
                    steps = state.step
                else:
                    network, steps = trained_flow(name, dataset, options.seconds, seed)
                cells = [name, str(seed), str(steps)]
                for calls in options.calls:
                    if name == "recipe":
                        images = images_of(model, state.ema.weights, "unipc", calls)
                    else:
                        images = flow_images(network, dataset, calls, is_told=name != "flow")
                    cells += distance_cells(images, real)
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
