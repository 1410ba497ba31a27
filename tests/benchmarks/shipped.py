"""Loops of the shipped model beside the loops that it was trained on.

    python -m tests.benchmarks.shipped [--model builtin:loops] [--count 100] [--steps 15] [--held_out FOLDER]

Onset rate, tempo confidence, spectral flatness and level are measured on the generated loops, and on slices of the real
loops whose audio is made of their mel images by the same vocoder. The distances of `logmel-stats` from each generated
loop to the nearest training slice are compared with the distances between slices of different tracks, as are those of
each training slice to the nearest slice of another track. The distances between generated and real loops are printed
beside those between two halves of the real tracks, and with a folder of other recordings (FLAC), those to its slices.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import librosa
import numpy as np
import numpy.typing as npt
import yaml

from audiodiff_core.audio import Samples
from audiodiff_core.checkpoint import load_model
from audiodiff_core.evaluation.copies import nearest_distances
from audiodiff_core.evaluation.features import logmel_stats
from audiodiff_core.evaluation.frechet import FeatureStatistics, frechet_distance
from audiodiff_core.evaluation.kernel import kernel_distance
from audiodiff_core.evaluation.pairs import distances
from audiodiff_core.loops import level_db
from audiodiff_core.loops.onsets import find_onsets
from audiodiff_core.loops.tempo import measure_tempo
from audiodiff_core.mel import Images, Mel, MelConfig
from audiodiff_core.mel.slices import Slicing, mel_slices
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "jobs" / "recipes" / "pretrained.yaml"
MEASURES = ("onsets per second", "tempo confidence", "spectral flatness", "level relative to the peak (dB)")


def sliced(files: Sequence[Path], mel: MelConfig, overlap: float) -> tuple[npt.NDArray[np.int64], Images]:
    """Return the number of the file and the image of each slice that is not silent."""
    slices = [
        (track, piece.image)
        for track, file in enumerate(files)
        for piece in mel_slices(file, Mel(mel), Slicing(overlap=overlap))
    ]
    return np.array([track for track, _ in slices]), np.stack([image for _, image in slices])


def measures(audio: Samples, rate: int) -> tuple[float, ...]:
    """Return the values of MEASURES."""
    audio = audio / np.abs(audio).max()
    flatness = float(librosa.feature.spectral_flatness(y=audio).mean())
    onsets = len(find_onsets(audio, rate).times_s) / (len(audio) / rate)
    return onsets, measure_tempo(audio, rate).confidence, flatness, level_db(audio)


def frechet(one: Images, other: Images) -> float:
    """Return the Fréchet distance between two sets of images."""
    return frechet_distance(*(FeatureStatistics.of(logmel_stats(images)) for images in (one, other)))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:loops")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--held_out", type=Path, help="folder of recordings that the model was not trained on")
    parser.add_argument("--steps", type=int, default=None, help="steps of each loop; default: those of a request")
    options = parser.parse_args()
    profile = ExecutionProfile.here()
    profile.prepare_process()
    pipeline = LoopPipeline.of(load_model(options.model), profile)
    mel, rate = pipeline.mel, pipeline.mel.sample_rate
    prepare = yaml.safe_load(RECIPE.read_text())["prepare"]
    files = sorted((ROOT / prepare["input_dir"]).glob("*.flac"))
    tracks, real = sliced(files, mel, prepare["overlap"])
    print(f"{len(real)} slices of {len(set(tracks))} tracks, {options.count} generated loops")
    requests = [GenerateRequest(seed=seed, steps=options.steps) for seed in range(options.count)]
    loops = list(pipeline.generate(requests))
    generated = np.stack([loop.image for loop in loops])
    print_measures([loop.audio for loop in loops], list(pipeline.vocoder(real, range(len(real)))), rate)
    print_distances(generated, real, tracks)
    if options.held_out is not None:
        known = {file.name for file in files}
        others = [file for file in sorted(options.held_out.rglob("*.flac")) if file.name not in known]
        held_out_tracks, held_out = sliced(others, mel, prepare["overlap"])
        half = held_out_tracks % 2 == 0
        print_rows(
            {
                f"generated, {len(others)} held-out recordings": (generated, held_out),
                "training tracks, held-out recordings": (real, held_out),
                "halves of the held-out recordings": (held_out[half], held_out[~half]),
            }
        )


def print_measures(generated: Sequence[Samples], real: Sequence[Samples], rate: int) -> None:
    """Print the median of the generated loops and the quartiles of the real ones."""
    ours, theirs = (np.array([measures(audio, rate) for audio in audios]) for audios in (generated, real))
    low, middle, high = np.quantile(theirs, (0.25, 0.5, 0.75), axis=0)
    print("\n| | generated, median | real, median | real, quartiles | between |\n|---|---|---|---|---|")
    for number, name in enumerate(MEASURES):
        median = float(np.median(ours[:, number]))
        within = "yes" if low[number] <= median <= high[number] else "no"
        span = f"{low[number]:.3g} to {high[number]:.3g}"
        print(f"| {name} | {median:.3g} | {middle[number]:.3g} | {span} | {within} |", flush=True)


def print_distances(generated: Images, real: Images, tracks: npt.NDArray[np.int64]) -> None:
    """Print how near the generated loops are to the training slices, one by one and as a set."""
    features, training = logmel_stats(generated), logmel_stats(real)
    nearest, _ = nearest_distances(features, training)
    is_other = tracks[:, np.newaxis] != tracks
    pairs = distances(training, training)
    least = float(np.quantile(pairs[is_other], 0.01))
    nearest_other = np.where(is_other, pairs, np.inf).min(axis=1)
    print(
        f"\n{int((nearest > least).sum())} of {len(nearest)} loops are farther from the nearest training slice than "
        f"{least:.3f}, the first percentile of the distances between slices of different tracks "
        f"(generated: {np.quantile(nearest, 0.01):.3f} first percentile, {np.median(nearest):.3f} median). "
        f"{int((nearest_other > least).sum())} of {len(training)} training slices are as far from all other tracks."
    )
    half = tracks % 2 == 0
    print_rows({"generated, real": (generated, real), "halves of the real tracks": (real[half], real[~half])})


def print_rows(rows: dict[str, tuple[Images, Images]]) -> None:
    """Print the distances between pairs of sets of images."""
    print("\n| | Fréchet | kernel, times 1,000 |\n|---|---|---|")
    for name, (one, other) in rows.items():
        kernel = 1_000 * kernel_distance(logmel_stats(one), logmel_stats(other))
        print(f"| {name} | {frechet(one, other):.3f} | {kernel:.2f} |", flush=True)


if __name__ == "__main__":
    main()
