"""Networks and settings of training after the same time: Fréchet and kernel distances by the number of network calls.

    python -m tests.benchmarks.networks [--seconds 480] [--seeds 0] [--ways NAME ...] [--methods ddim:50 unipc:4]
        [--averages 0.05 0.1 0.2]

Every contender trains on the slices of the tiny recipe, in this process on one thread, for a time of the processor, so
that contenders can run side by side. Distances are those of the mel images of 128 loops to the training images by
`logmel-stats`.

With `--averages`, further rows measure other averages of the weights of the same training: those of the power functions
of Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2024), by their relative widths.
That paper reconstructs such averages after the training ("post-hoc EMA"); here each is taken while the network trains.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from diffusers import UNet2DModel

from audiodiff_core.checkpoint import ModelRecord, load_model, save_model
from audiodiff_core.evaluation.features import Features, logmel_stats
from audiodiff_core.evaluation.frechet import FeatureStatistics, frechet_distance
from audiodiff_core.evaluation.kernel import kernel_distance
from audiodiff_core.mel import Images
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


class PowerAverage:
    """Average of weights whose profile is a power function of the time.

    Args:
        width: Standard deviation of the profile as a fraction of the training.
    """

    def __init__(self, width: float) -> None:
        inverse = width**-2
        self.exponent = float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())
        self.steps = 0

    @torch.no_grad()
    def update(self, parameters: Sequence[torch.Tensor]) -> None:
        """Update the average with the weights after an optimizer step."""
        self.steps += 1
        if self.steps == 1:
            self.weights = [parameter.detach().clone() for parameter in parameters]
        torch._foreach_lerp_(self.weights, list(parameters), 1 - (1 - 1 / self.steps) ** (self.exponent + 1))


def trained(
    way: Way, dataset: MelDataset, seconds: float, seed: int, folder: Path, averages: Sequence[PowerAverage] = ()
) -> tuple[Path, TrainState]:
    """Train a network for a time, and return the folder of the model and the state at the end.

    Args:
        way: Network and settings.
        dataset: The training data.
        seconds: Processor time.
        seed: Seed of the training.
        folder: The folder of the model.
        averages: Further averages of the weights to update.
    """
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
        for average in averages:
            average.update(list(network.parameters()))
    network.load_state_dict(state.ema_state_dict())
    record = ModelRecord(recipe={}, data_digest="none", metrics={})
    save_model(folder, network, objective.scheduler("ddim"), mel, record)
    return folder, state


def images_of(model: Path, weights: Sequence[torch.Tensor], method: str, steps: int) -> Images:
    """Generate COUNT images by a model with other weights."""
    loaded = load_model(model)
    with torch.no_grad():
        torch._foreach_copy_(list(loaded.unet.parameters()), list(weights))
    pipeline = LoopPipeline.of(loaded, ExecutionProfile(batch_size=8, threads=1))
    fields = {"scheduler": method, "steps": steps}
    requests = [GenerateRequest.model_validate({"seed": item, **fields}) for item in range(COUNT)]
    return np.stack([loop.image for loop in pipeline.generate(requests)])


def distance_cells(images: Images, real: Features) -> list[str]:
    """Return the Fréchet distance of images to real features, and the kernel distance times 1,000, as text."""
    features = logmel_stats(images)
    distance = frechet_distance(FeatureStatistics.of(features), FeatureStatistics.of(real))
    return [f"{distance:.3f}", f"{1_000 * kernel_distance(features, real):.2f}"]


def main() -> None:
    """Train and measure the contenders in turn, and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480.0, help="processor time of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="METHOD:STEPS")
    parser.add_argument("--averages", nargs="+", type=float, default=[], help="relative widths of further averages")
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
                averages = {width: PowerAverage(width) for width in options.averages}
                model, state = trained(
                    WAYS[name], dataset, options.seconds, seed, folder / f"{seed} {name}", tuple(averages.values())
                )
                rows = {name: state.ema.weights}
                rows |= {f"{name}, average of width {width:g}": one.weights for width, one in averages.items()}
                for row, weights in rows.items():
                    cells = [row, str(seed), f"{parameter_count(state.bare):,}", str(state.step)]
                    for method, steps in methods:
                        cells += distance_cells(images_of(model, weights, method, int(steps)), real)
                    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
