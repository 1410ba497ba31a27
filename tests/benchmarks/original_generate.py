"""Finished files per minute of jobs/generate.py and of the original looped over the same model and seeds.

    python -m tests.benchmarks.original_generate [--seconds 300] [--count 256] [--rounds 1] [--folder DIR]

The network of the tiny recipe, without folding, learns the shipped loops at 64x64 for five minutes. The original's
pipeline runs in one process with two threads, in its own environment (.venv-original), with 50 steps of DDIM, by one
loop and by batches of eight. The job runs with two workers of one thread: with 50 steps of DDIM, and with the default
method and number of steps. All contenders write the seeds 0 to `count` - 1 as WAV files. They run in turn, `rounds`
times, and the medians are compared. End to end is the duration of the whole command. The rate without start counts from
the loaded model of the original, and from the first shard of the job.

The quality is that of the audio in the files: its Fréchet distance and its kernel distance (times 1000) to all slices
of the training audio by `logmel-stats`, with 95 % intervals from resamples of the loops and of the training tracks. Two
contenders have equal quality if their intervals overlap for both distances.

A model that lies in `--folder` is not trained again.
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from audiodiff_core.audio import decode_audio
from audiodiff_core.checkpoint import RECORD, load_outline
from audiodiff_core.evaluation.comparison import resampled
from audiodiff_core.evaluation.embedders import item_from_samples, load_embedder
from audiodiff_core.evaluation.features import EMBEDDER, Features
from audiodiff_core.mel import Mel, MelConfig
from tests.benchmarks.generate_job import run_job
from tests.benchmarks.methods import SCALES, Distance, Distances, distances, reference_items
from tests.benchmarks.processes import ROOT
from tests.benchmarks.recipe import UNFOLDED, prepare, train

ORIGINAL = ROOT / ".venv-original" / "bin" / "python"
CORES, STEPS = 2, 50


@dataclass
class Contender:
    """A way to generate the loops, with its times in seconds.

    Args:
        name: Name in the table.
        generate: Writes the WAV files to a subfolder of a folder, and returns the subfolder, the duration of the whole
            command, and its part after the start.
    """

    name: str
    generate: Callable[[Path], tuple[Path, float, float]]
    whole: list[float] = field(default_factory=list)
    working: list[float] = field(default_factory=list)
    quality: Distances = field(default_factory=dict)

    @property
    def times(self) -> tuple[list[float], list[float]]:
        """Durations of the whole command, and without the start, by round."""
        return self.whole, self.working

    def run(self, folder: Path) -> Path:
        """Generate the loops and return the folder of the WAV files."""
        audio, whole, working = self.generate(folder)
        self.whole.append(whole)
        self.working.append(working)
        return audio


def by_the_original(model: Path, count: int, batch: int, folder: Path) -> tuple[Path, float, float]:
    arguments = (model, folder, count, batch, STEPS, CORES)
    command = [str(ORIGINAL), "tests/benchmarks/original/generate.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    seconds = json.loads(done.stdout.splitlines()[-1])
    return folder, seconds["start"] + seconds["loop"], seconds["loop"]


def by_the_job(model: Path, count: int, options: tuple[object, ...], folder: Path) -> tuple[Path, float, float]:
    run = run_job(model, folder, count, CORES, *options)
    return folder / "audio", run.seconds, run.working_seconds


def features_of(folder: Path, config: MelConfig) -> Features:
    """Return the features (n, d) of the WAV files of a folder."""
    mel, embed = Mel(config), load_embedder(EMBEDDER, config.sample_rate)
    files = sorted(folder.glob("*.wav"))
    return embed([item_from_samples(decode_audio(file, config.sample_rate), mel)[0] for file in files])


def interval(distance: Distance) -> tuple[float, float]:
    return distance.value - distance.margin, distance.value + distance.margin


def overlap(one: Distances, other: Distances) -> bool:
    """Return whether the intervals of both distances overlap."""
    pairs = [(interval(one[name]), interval(other[name])) for name in SCALES]
    return all(low <= other_high and other_low <= high for (low, high), (other_low, other_high) in pairs)


def table(contenders: list[Contender], count: int) -> str:
    """Format the contenders as a markdown table. The first two are the original."""
    lines = [
        "| | files a minute, end to end | without start | Fréchet | 95 % | kernel | 95 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for contender in contenders:
        cells = [contender.name, *(f"{60 * count / np.median(seconds):.1f}" for seconds in contender.times)]
        for name, scale in SCALES.items():
            low, high = (scale * bound for bound in interval(contender.quality[name]))
            low = max(0.0, low) if name == "frechet" else low
            cells += [f"{scale * contender.quality[name].value:.3f}", f"{low:.3f} to {high:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    originals, ours = contenders[:2], contenders[2:]
    for own in ours:
        for other in originals:
            whole, working = (
                np.median(theirs) / np.median(seconds) for seconds, theirs in zip(own.times, other.times, strict=True)
            )
            same = "overlap" if overlap(own.quality, other.quality) else "do not overlap"
            lines.append(
                f"- {own.name}, against {other.name}: {whole:.2f} times end to end, {working:.2f} times without start; "
                f"the intervals of both distances {same}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300, help="training time of the model")
    parser.add_argument("--count", type=int, default=256, help="loops of each contender")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each contender")
    parser.add_argument("--folder", type=Path, help="folder of data set and model; none: a temporary folder")
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="audiodiff-") as temporary:
        scratch = Path(temporary)
        folder = (given.folder or scratch).absolute()
        dataset, model = folder / "dataset", folder / "run" / "model"
        prepare(dataset)
        if not (model / RECORD).exists():
            train(dataset, folder / "run", given.seconds, 0, *UNFOLDED)
        same_steps = ("--scheduler", "ddim", "--steps", STEPS)
        contenders = [
            Contender("original, one by one, ddim 50", partial(by_the_original, model, given.count, 1)),
            Contender("original, batches of 8, ddim 50", partial(by_the_original, model, given.count, 8)),
            Contender("job, ddim 50", partial(by_the_job, model, given.count, same_steps)),
            Contender("job, default method and steps", partial(by_the_job, model, given.count, ())),
        ]
        reference, mel = reference_items(dataset), load_outline(model).mel
        generator = np.random.default_rng(0)
        weights = resampled(reference.numbers, generator), resampled(np.arange(given.count), generator)
        for number in range(given.rounds):
            for place, contender in enumerate(contenders):
                audio = contender.run(scratch / f"{number}-{place}")
                contender.quality = distances(reference, features_of(audio, mel), *weights)
                print(f"round {number + 1}, {contender.name}: {contender.whole[-1]:.1f} s", flush=True)
        tracks = len(set(reference.tracks))
        print(f"\n{given.count} loops, {len(reference)} real slices of {tracks} tracks\n")
        print(table(contenders, given.count))


if __name__ == "__main__":
    main()
