"""Networks and settings of training after the same time: Fréchet and kernel distances by the number of network calls.

    python -m tests.benchmarks.networks [--seconds 480] [--seeds 0] [--ways NAME ...] [--methods ddim:50 unipc:4]

Every contender trains on the slices of the tiny recipe, in this process on one thread, for a time of the processor, so
that contenders can run side by side. Distances are those of the mel images of 128 loops to the training images by
`logmel-stats`.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from diffusers import UNet2DModel

from audiodiff_core.checkpoint import ModelRecord, load_model, save_model
from audiodiff_core.evaluation.features import logmel_stats
from audiodiff_core.evaluation.frechet import FeatureStatistics, frechet_distance
from audiodiff_core.evaluation.kernel import kernel_distance
from audiodiff_core.models import PRESETS, PresetName, build_network, configured, parameter_count
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_core.training import TrainBatch, TrainState, learning_rate, train_step
from audiodiff_platform.mel_data.mel_dataset import MelDataset
from tests.benchmarks.recipe import RECIPE, ROOT, prepare

COUNT = 128
METHODS = ("ddim:50", "unipc:50", "unipc:4")
"""Methods and their numbers of steps."""
TRAIN = yaml.safe_load((ROOT / RECIPE).read_text())["train"]


@dataclass(frozen=True)
class Way:
    """A network of images, trained in the way of the recipe before folding, and the differences from it."""

    preset: PresetName = "tiny"
    batch: int = 8
    rate: float = 1e-3
    network: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)


def blocks(*channels: int, attention: bool = True) -> dict[str, Any]:
    """Return the configuration of levels of these widths, with attention at the last."""
    plain, last = len(channels) - 1, "Attn" if attention else ""
    return {
        "block_out_channels": channels,
        "down_block_types": (*["DownBlock2D"] * plain, f"{last}DownBlock2D"),
        "up_block_types": (f"{last}UpBlock2D", *["UpBlock2D"] * plain),
    }


WAYS = {
    "uniform timesteps (the recipe before)": Way(objective={"timestep_sampling": "uniform"}),
    "logit-normal timesteps": Way(),
    "rate 2e-3": Way(rate=2e-3),
    "rate 4e-3": Way(rate=4e-3),
    "batch 4": Way(batch=4),
    "batch 4, rate 2e-3": Way(batch=4, rate=2e-3),
    "batch 16, rate 2e-3": Way(batch=16, rate=2e-3),
    "folded": Way("tiny-folded"),
    "folded, rate 2e-3": Way("tiny-folded", rate=2e-3),
    "folded, batch 4, rate 2e-3": Way("tiny-folded", batch=4, rate=2e-3),
    "folded, batch 4, rate 4e-3": Way("tiny-folded", batch=4, rate=4e-3),
    "folded, batch 2, rate 2e-3": Way("tiny-folded", batch=2, rate=2e-3),
    "folded, (48, 64, 64)": Way("tiny-folded", batch=4, rate=2e-3, network={"block_out_channels": (48, 64, 64)}),
    "heads of 32": Way(network={"attention_head_dim": 32}),
    "no attention": Way(network=blocks(16, 32, 64, 64, attention=False)),
    "(8, 32, 64, 64)": Way(network=blocks(8, 32, 64, 64)),
    "(8, 48, 96, 96)": Way(network=blocks(8, 48, 96, 96)),
    "(16, 48, 96, 96)": Way(network=blocks(16, 48, 96, 96)),
    "(16, 32, 64)": Way(network=blocks(16, 32, 64)),
    "min-SNR 5": Way(objective={"min_snr_gamma": 5.0}),
    "cosine betas": Way(objective={"beta_schedule": "squaredcos_cap_v2"}),
}


def trained(way: Way, dataset: MelDataset, seconds: float, seed: int, folder: Path) -> tuple[Path, TrainState]:
    """Train a network for a time, and return the folder of the model and the state at the end."""
    images, mel = dataset.all_images(), dataset.mel
    objective = PRESETS[way.preset].objective.model_copy(update=way.objective)
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True)
    network = configured(UNet2DModel, {**build_network(way.preset, mel).config, **way.network})
    state = TrainState(accelerator, network, objective, way.rate, seed)
    order, numbers = np.random.default_rng(seed), np.zeros(0, np.int64)
    began = time.process_time()
    while (passed := time.process_time() - began) < seconds:
        if len(numbers) < way.batch:
            numbers = np.concatenate([numbers, order.permutation(len(images))])
        chosen, numbers = numbers[: way.batch], numbers[way.batch :]
        first = state.step * way.batch
        batch = TrainBatch(torch.arange(first, first + way.batch), torch.from_numpy(images[chosen]))
        rate = learning_rate(way.rate, state.step, TRAIN["lr_warmup_steps"], passed / seconds)
        train_step(accelerator, state, [batch], rate)
    network.load_state_dict(state.ema_state_dict())
    record = ModelRecord(recipe={}, data_digest="none", metrics={})
    save_model(folder, network, objective.scheduler("ddim"), mel, record)
    return folder, state


def main() -> None:
    """Train and measure the contenders in turn, and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480.0, help="processor time of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="METHOD:STEPS")
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods = [method.split(":") for method in options.methods]
    calls = " | ".join(f"{name}, {steps}: Fréchet | kernel" for name, steps in methods)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare(folder / "dataset")
        dataset = MelDataset(str(folder / "dataset"))
        real = logmel_stats(dataset.all_images())
        print(f"| way | seed | parameters | steps | {calls} |\n|{'---|' * (4 + 2 * len(methods))}", flush=True)
        for seed in options.seeds:
            for name in options.ways:
                model, state = trained(WAYS[name], dataset, options.seconds, seed, folder / f"{seed} {name}")
                cells = [name, str(seed), f"{parameter_count(state.bare):,}", str(state.step)]
                pipeline = LoopPipeline.of(load_model(model), ExecutionProfile(batch_size=8, threads=1))
                for method, steps in methods:
                    fields = {"scheduler": method, "steps": int(steps)}
                    requests = [GenerateRequest.model_validate({"seed": item, **fields}) for item in range(COUNT)]
                    made_images = np.stack([loop.image for loop in pipeline.generate(requests)])
                    features = logmel_stats(made_images)
                    distance = frechet_distance(FeatureStatistics.of(features), FeatureStatistics.of(real))
                    cells += [f"{distance:.3f}", f"{1_000 * kernel_distance(features, real):.2f}"]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
