"""Quality and speed of every sampling method at several numbers of network calls.

    python -m tests.benchmarks.methods [--seconds 300] [--items 128] [--folder DIR] [--objective diffusion|flow|both]

The network of the tiny recipe learns the shipped loops twice: by the objective of the recipe, and as a flow. Every
sampling method that suits a model then generates the same seeds. The table holds, for each method and number of calls,
the distances of the audio of the loops to the training audio by `logmel-stats`:

- the Fréchet distance
- the kernel distance: the unbiased estimate of the squared maximum mean discrepancy, times 1000

The 95 % intervals come from resamples of the loops and of the training tracks. The last row of the table is the mean
distance between two halves of the training tracks. Loops per minute are measured in CPU time of one thread. They
include the vocoder. Two processes run at the same time.

Two settings are named below the table. Both have the fewest calls under a condition on both distances:

- Each distance lies within the interval of the best distance. The few training tracks make this interval wide.
- The interval of the difference from each best distance includes 0. All settings share the resamples, so that the
  choice of tracks hardly affects the difference.

A model that lies in `--folder` is not trained again.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from audiodiff_core.checkpoint import RECORD, load_model
from audiodiff_core.diffusion.methods import METHODS, SchedulerName
from audiodiff_core.diffusion.noise_schedule import Schedule
from audiodiff_core.diffusion.schedulers import resolved
from audiodiff_core.evaluation import Items, real_to_real
from audiodiff_core.evaluation.comparison import NORMAL_95, resampled
from audiodiff_core.evaluation.embedders import item_from_samples, load_embedder
from audiodiff_core.evaluation.features import EMBEDDER, Features, ItemWeights, logmel_stats
from audiodiff_core.evaluation.frechet import FeatureStatistics, frechet_distance
from audiodiff_core.evaluation.kernel import kernel_distance, kernel_distances
from audiodiff_core.mel import Mel
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.mel_dataset import MelDataset
from tests.benchmarks.recipe import prepare, train

OBJECTIVES: dict[str, list[str]] = {"diffusion": [], "flow": ["--prediction_type", "flow"]}
"""Options of training by objective, which replace those of the recipe."""
CALLS = (4, 6, 8, 10, 15, 20, 25, 50, 100)
MORE_CALLS: dict[SchedulerName, tuple[int, ...]] = {"ddpm": (250,)}
CORES = 2
SCALES = {"frechet": 1, "kernel": 1000}
"""Factors by which distances are printed."""


@dataclass(frozen=True)
class Setting:
    """A sampling method, its steps, and the network calls that they make."""

    method: SchedulerName
    steps: int
    calls: int

    def __str__(self) -> str:
        return f"{self.method}, {self.steps} steps ({self.calls} calls)"


@dataclass(frozen=True)
class Distance:
    """A distance, and its values in resamples of both sides, of shape (resamples,)."""

    value: float
    resamples: Features

    @property
    def margin(self) -> float:
        """Half width of the 95 % interval."""
        return NORMAL_95 * float(np.nanstd(self.resamples, ddof=1))

    def is_within(self, best: "Distance") -> bool:
        """Return whether the distance lies within the interval of the best distance."""
        return self.value <= best.value + best.margin

    def is_as_good_as(self, best: "Distance") -> bool:
        """Return whether the interval of the difference from the best distance includes 0."""
        difference = Distance(self.value - best.value, self.resamples - best.resamples)
        return difference.value <= difference.margin


Distances = dict[str, Distance]
"""Distances by name: the keys of SCALES."""


@dataclass(frozen=True)
class Row:
    """Figures of a setting: distances, and loops per minute of CPU time of one core."""

    setting: Setting
    distances: Distances
    loops_per_minute: float


def settings_of(scheduler: Any, calls: Sequence[int]) -> list[Setting]:
    """List the settings of all methods that suit a model. No setting makes more calls than its number in `calls`.

    The last step of Heun's method makes one call, the other steps make two.

    Args:
        scheduler: The scheduler that is saved with the model.
        calls: Numbers of network calls.
    """
    settings = []
    for name, method in METHODS.items():
        try:
            resolved(scheduler, GenerateRequest(scheduler=name))
        except ValueError:
            continue
        for limit in (*calls, *MORE_CALLS.get(name, ())):
            steps = -(-limit // method.calls_per_step)
            made = Schedule(scheduler, GenerateRequest(scheduler=name, steps=steps)).calls
            settings.append(Setting(name, steps, made))
    return settings


@lru_cache(maxsize=1)
def pipeline_of(model: Path) -> LoopPipeline:
    """Load a model on one thread of this process, and generate a few loops as a warm-up."""
    threadpool_limits(1)
    pipeline = LoopPipeline.from_pretrained(model, ExecutionProfile(batch_size=4))
    list(pipeline.generate([GenerateRequest(seed=seed, steps=2) for seed in range(4)]))
    return pipeline


def generated(model: Path, setting: Setting, count: int) -> tuple[Features, float]:
    """Generate the seeds 0 to `count` - 1, and return the features (count, d) of their audio and the CPU seconds."""
    pipeline = pipeline_of(model)
    requests = [GenerateRequest(seed=seed, scheduler=setting.method, steps=setting.steps) for seed in range(count)]
    began = time.process_time()
    loops = sorted(pipeline.generate(requests), key=lambda loop: loop.number)
    seconds = time.process_time() - began
    mel, embed = Mel(pipeline.mel), load_embedder(EMBEDDER, pipeline.mel.sample_rate)
    return embed([item_from_samples(loop.audio, mel)[0] for loop in loops]), seconds


def all_generated(model: Path, settings: Iterable[Setting], count: int) -> Iterator[tuple[Setting, Features, float]]:
    """Yield each setting with its features and CPU seconds, as they are finished, by CORES processes."""
    with ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn")) as executor:
        longest_first = sorted(settings, key=lambda setting: -setting.calls)
        running = {executor.submit(generated, model, setting, count): setting for setting in longest_first}
        for done in as_completed(running):
            yield running[done], *done.result()


def distances(reference: Items, features: Features, real_weights: ItemWeights, weights: ItemWeights) -> Distances:
    """Compute the distances of generated items to real items.

    Args:
        reference: Real items.
        features: Features (n, d) of the generated items.
        real_weights: Weights of the real items in each resample.
        weights: Weights of the generated items in each resample, of shape (n, resamples).
    """
    real = reference.features
    frechet = [
        frechet_distance(FeatureStatistics.of(features, column), FeatureStatistics.of(real, real_column))
        for column, real_column in zip(weights.T, real_weights.T, strict=True)
    ]
    point = frechet_distance(FeatureStatistics.of(features), FeatureStatistics.of(real))
    kernel = kernel_distances(features, real, weights, real_weights)
    return {
        "frechet": Distance(point, np.array(frechet)),
        "kernel": Distance(kernel_distance(features, real), kernel),
    }


def reference_items(dataset: Path) -> Items:
    """Return the features of all slices of a data set, and their tracks."""
    slices = MelDataset(str(dataset))
    return Items(logmel_stats(slices.all_images()), slices.column("audio_file"))


def table(rows: Sequence[Row], halves: dict[str, float]) -> str:
    """Format rows as a markdown table, with the distances between halves of the real tracks at the end."""
    lines = [
        "| method | steps | calls | Fréchet | 95 % | kernel | 95 % | loops a minute, one core |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.setting.method, str(row.setting.steps), str(row.setting.calls)]
        for name, scale in SCALES.items():
            distance = row.distances[name]
            low, high = (distance.value + side * distance.margin for side in (-1, 1))
            low = max(0.0, low) if name == "frechet" else low
            cells += [f"{scale * distance.value:.3f}", f"{scale * low:.3f} to {scale * high:.3f}"]
        lines.append(f"| {' | '.join([*cells, f'{row.loops_per_minute:.0f}'])} |")
    values = [f"{scale * halves[f'{name}_real_to_real']:.3f}" for name, scale in SCALES.items()]
    lines.append(f"| halves of the real tracks | | | {values[0]} | | {values[1]} | | |")
    return "\n".join(lines)


def choices(rows: Sequence[Row]) -> Iterator[str]:
    """Describe the best settings, and the cheapest settings that are about as good."""
    best = {name: min(rows, key=lambda row: row.distances[name].value) for name in SCALES}
    for name, row in best.items():
        yield f"best {name}: {row.setting}"
    tests: dict[str, Callable[[Distance, Distance], bool]] = {
        "within the intervals of the best (candidate for the default)": Distance.is_within,
        "not different from the best by paired resamples": Distance.is_as_good_as,
    }
    for words, is_near in tests.items():
        near = [row for row in rows if all(is_near(row.distances[name], best[name].distances[name]) for name in SCALES)]
        cheapest = min(near, key=lambda row: (row.setting.calls, row.distances["frechet"].value), default=None)
        yield f"cheapest {words}: {cheapest.setting if cheapest else 'none by both distances'}"


def compared(objective: str, folder: Path, seconds: float, count: int, calls: Sequence[int]) -> None:
    """Train a model unless it is there, generate by all settings, and print the table and the choices."""
    dataset, output = folder / "dataset", folder / objective
    model = output / "model"
    if (model / RECORD).exists():
        say(f"{objective}: {model} is there already")
    else:
        trained = train(dataset, output, seconds, 0, *OBJECTIVES[objective])
        say(f"{objective}: {trained['steps']:.0f} steps, {trained['seconds']:.0f} s")
    reference = reference_items(dataset)
    generator = np.random.default_rng(0)  # the draws are those of `compare`
    weights = resampled(reference.numbers, generator), resampled(np.arange(count), generator)
    halves = real_to_real(reference, generator)
    settings = settings_of(load_model(model).scheduler, calls)
    rows = []
    for setting, features, used in all_generated(model, settings, count):
        rows.append(Row(setting, distances(reference, features, *weights), 60 * count / used))
        say(f"{objective}: {len(rows)} of {len(settings)}: {setting}, {used:.0f} s of CPU time")
    rows.sort(key=lambda row: settings.index(row.setting))
    tracks = len(set(reference.tracks))
    print(f"{objective}: {count} loops, {len(reference)} real slices of {tracks} tracks\n")
    print(table(rows, halves), end="\n\n")
    print("\n".join(f"- {objective}, {choice}" for choice in choices(rows)), end="\n\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300, help="training time of a model")
    parser.add_argument("--items", type=int, default=128, help="loops per setting")
    parser.add_argument("--calls", type=int, nargs="+", default=list(CALLS), help="numbers of network calls")
    parser.add_argument("--folder", type=Path, help="folder of data set and models; none: a temporary folder")
    parser.add_argument("--objective", choices=(*OBJECTIVES, "both"), default="both")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.folder or Path(scratch)).absolute()
        prepare(folder / "dataset")
        for objective in OBJECTIVES if given.objective == "both" else [given.objective]:
            compared(objective, folder, given.seconds, given.items, given.calls)


if __name__ == "__main__":
    main()
