"""Loops of a requested tempo and key: a conditional network beside an unconditional one of the same training time.

    python -m tests.benchmarks.conditions [--minutes 30] [--columns 256] [--grooves 720] [--input_dir FOLDER]
        [--work_dir FOLDER] [--guidance 1 3] [--conditioning_dropout 0.1] [--learning_rate 1e-3]

Without --input_dir, the recordings are synthesized (`tests.benchmarks.grooves`), so that the tempo and the key of each
are unambiguous. Recordings of --input_dir are played at twelve speeds, a semitone apart, so that the training audio has
many tempos and all keys.

Both networks are small ones, trained on slices as long as the loops: 256 columns (12 s). With `--columns 64`, they are
trained on slices of 3 s. Half and double the requested tempo count as errors. The recordings, cut to the length of
loops and made of their mel images by the same vocoder, show what the resolution and the measures allow: they are
compared with their own features.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import soxr

from audiodiff_core.audio import Samples, decode_audio
from audiodiff_core.audio.key_names import MODES, TONICS, key_parts
from audiodiff_core.checkpoint import load_model
from audiodiff_core.evaluation.comparison import resampled
from audiodiff_core.evaluation.features import logmel_stats
from audiodiff_core.loops.features import measure_features
from audiodiff_core.loops.key import measure_key
from audiodiff_core.loops.tempo import measure_tempo
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.pipeline import LoopPipeline
from audiodiff_core.sampling import ExecutionProfile, GenerateRequest
from audiodiff_core.vocoder import GriffinLim
from tests.benchmarks.grooves import write_grooves
from tests.benchmarks.methods import SCALES, distances, reference_items
from tests.benchmarks.original_generate import interval
from tests.benchmarks.recipe import job, train

RATE = 22_050
SEMITONES = range(-6, 6)
MIN_S = 12.0
"""Duration to which a shorter recording is repeated."""
BANDS = 64
MEL = ("--sample_rate", RATE, "--hop_length", 1024, "--overlap", 0.5)
WIDTH = 256
"""Columns of loops of a tempo or a key."""
BATCH, COLUMNS_PER_BATCH = 4, 512
"""Largest number of slices of a batch, and of their columns."""
CONDITIONAL = ("--preset", "tiny-conditional-bands", "--condition", "tempo,key")
LEARNING_RATE = 1e-3
"""Rate of the conditional network. With that of the recipe, twice as high, a longer training diverged."""
TEMPOS_BPM = (90.0, 140.0)
TOLERANCE = 0.03
STEPS = 20
COUNT = 48
"""Loops of each tempo, and of all keys."""
UNCONDITIONED = 128


def play_at_speeds(recordings: Path, folder: Path) -> None:
    """Write each recording at twelve speeds, repeated to MIN_S."""
    for file in sorted(recordings.glob("*.flac")):
        audio = decode_audio(file, RATE)
        for semitones in SEMITONES:
            played: Samples = soxr.resample(audio, RATE * 2 ** (semitones / 12), RATE)
            times = int(np.ceil(MIN_S * RATE / len(played)))
            soundfile.write(folder / f"{file.stem}{semitones:+d}.flac", np.tile(played, times), RATE)


@contextmanager
def folder_for(work_dir: Path | None) -> Iterator[Path]:
    """Return the given folder, or a temporary one."""
    if work_dir is None:
        with tempfile.TemporaryDirectory() as made:
            yield Path(made)
    else:
        work_dir.mkdir(parents=True, exist_ok=True)
        yield work_dir


def main() -> None:
    """Train both networks and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="training time of each network")
    parser.add_argument("--columns", type=int, default=WIDTH, help="columns of the slices of training")
    parser.add_argument("--grooves", type=int, default=720, help="number of synthesized recordings")
    parser.add_argument("--input_dir", type=Path, help="FLAC files to play at twelve speeds; default: grooves")
    parser.add_argument("--work_dir", type=Path, help="folder of the data set and the networks; default: temporary")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--conditioning_dropout", type=float, default=0.1, help="that of the conditional network")
    parser.add_argument("--learning_rate", type=float, default=LEARNING_RATE, help="that of the conditional network")
    options = parser.parse_args()
    with folder_for(options.work_dir) as work:
        audio, dataset = work / "audio", work / "dataset"
        if not audio.exists():
            audio.mkdir()
            if options.input_dir is None:
                write_grooves(audio, options.grooves, RATE)
            else:
                play_at_speeds(options.input_dir, audio)
        resolution = ("--resolution", f"{options.columns},{BANDS}")
        job("prepare", "--input_dir", audio, "--output_dir", dataset, *resolution, *MEL)
        slices = pa.concat_tables(pq.read_table(file) for file in sorted(dataset.glob("data/*.parquet"))).to_pylist()
        print(f"{len(slices)} slices, {count(slices, 'tempo')} with a tempo, {count(slices, 'key')} with a key")
        networks: dict[str, tuple[object, ...]] = {
            "conditional": (
                *CONDITIONAL,
                *("--conditioning_dropout", options.conditioning_dropout, "--learning_rate", options.learning_rate),
            ),
            "unconditional": ("--preset", "tiny-folded"),
        }
        pipelines = {}
        for name, flags in networks.items():
            batch = ("--train_batch_size", max(1, min(BATCH, COLUMNS_PER_BATCH // options.columns)))
            trained = train(dataset, work / name, 60 * options.minutes, 0, *batch, *flags)
            print(f"{name}: {trained['steps']:.0f} steps", flush=True)
            profile = ExecutionProfile.here()
            profile.prepare_process()
            pipelines[name] = LoopPipeline.of(load_model(work / name / "model"), profile)
        print_ceiling(audio, pipelines["conditional"].mel.model_copy(update={"x_res": WIDTH}))
        for scale in options.guidance:
            print_conditions(pipelines["conditional"], scale)
        print_distances(pipelines, dataset)


def count(slices: Sequence[dict[str, object]], feature: str) -> int:
    """Return the number of slices of which a feature is known."""
    return sum(row[feature] is not None for row in slices)


def request(seed: int, **fields: Any) -> GenerateRequest:
    """Return a request with the sampling method of the recipe."""
    return GenerateRequest(seed=seed, scheduler="unipc", steps=STEPS, **fields)


def generated(pipeline: LoopPipeline, requests: Sequence[GenerateRequest]) -> list[Samples]:
    """Return the audio of loops in the order of their requests."""
    return [loop.audio for loop in sorted(pipeline.generate(requests), key=lambda loop: loop.number)]


def tempo_errors(audios: Sequence[Samples], bpm: Sequence[float]) -> list[float]:
    """Return the relative errors of the measured tempos. Audio without a tempo has an infinite error."""
    measured = [measure_tempo(audio, RATE).bpm for audio in audios]
    return [np.inf if one is None else abs(one / asked - 1) for one, asked in zip(measured, bpm, strict=True)]


def has_tonic(audio: Samples, key: str) -> bool:
    """Return whether the measured key has the tonic of `key`."""
    measured = measure_key(audio, RATE)
    return measured.tonic == TONICS[key_parts(key)[0]]


def strongest_class(audio: Samples) -> int:
    """Return the pitch class of the strongest chroma, from C, by librosa's constant-Q chroma."""
    import librosa

    return int(librosa.feature.chroma_cqt(y=audio, sr=RATE).mean(axis=1).argmax())


def print_row(name: str, audios: Sequence[Samples], bpm: Sequence[float] = (), keys: Sequence[str] = ()) -> None:
    """Print a row of the table of conditions."""
    tempo_cells, key_cells = ["", ""], ["", ""]
    if bpm:
        errors = tempo_errors(audios, bpm)
        tempo_cells = [f"{np.median(errors):.3f}", f"{np.mean(np.array(errors) <= TOLERANCE):.2f}"]
    if keys:
        strongest = [strongest_class(audio) == key_parts(key)[0] for audio, key in zip(audios, keys, strict=True)]
        tonics = [has_tonic(audio, key) for audio, key in zip(audios, keys, strict=True)]
        key_cells = [f"{np.mean(tonics):.2f}", f"{np.mean(strongest):.2f}"]
    cells = [name, str(len(audios)), *tempo_cells, *key_cells]
    print(f"| {' | '.join(cells)} |", flush=True)


def print_ceiling(recordings: Path, mel: MelConfig) -> None:
    """Print the measures of recordings, from their images."""
    print("\n| | loops | median error of the tempo | within 3 % | tonic measured | tonic strongest |")
    print("|---|---|---|---|---|---|")
    files = np.random.default_rng(0).permutation(sorted(recordings.iterdir()))
    audios = [decode_audio(file, RATE)[: mel.slice_size] for file in files]
    features = [measure_features(audio, RATE) for audio in audios]
    tempos = [(audio, one.tempo) for audio, one in zip(audios, features, strict=True) if one.tempo is not None][:COUNT]
    keys = [(audio, one.key) for audio, one in zip(audios, features, strict=True) if one.key is not None][:COUNT]
    converter, vocoder = Mel(mel), GriffinLim(mel)

    def from_images(chosen: Sequence[Samples]) -> list[Samples]:
        images, _ = converter.images(np.stack(chosen))
        return list(vocoder(images, range(len(chosen))))

    print_row("recordings", from_images([audio for audio, _ in tempos]), bpm=[tempo for _, tempo in tempos])
    print_row("recordings", from_images([audio for audio, _ in keys]), keys=[key for _, key in keys])


def print_conditions(pipeline: LoopPipeline, scale: float) -> None:
    """Print the measures of loops of each tempo, of all keys, and of both."""
    for tempo in TEMPOS_BPM:
        requests = [request(seed, bpm=tempo, width=WIDTH, guidance_scale=scale) for seed in range(COUNT)]
        print_row(f"{tempo:g} bpm, guidance {scale:g}", generated(pipeline, requests), bpm=[tempo] * COUNT)
    keys = [f"{TONICS[seed % len(TONICS)]} {MODES[seed // len(TONICS) % 2]}" for seed in range(COUNT)]
    requests = [request(seed, key=key, width=WIDTH, guidance_scale=scale) for seed, key in enumerate(keys)]
    print_row(f"keys, guidance {scale:g}", generated(pipeline, requests), keys=keys)
    bpm = [TEMPOS_BPM[seed % 2] for seed in range(COUNT)]
    requests = [one.model_copy(update={"bpm": tempo}) for one, tempo in zip(requests, bpm, strict=True)]
    print_row(f"both, guidance {scale:g}", generated(pipeline, requests), bpm=bpm, keys=keys)


def print_distances(pipelines: dict[str, LoopPipeline], dataset: Path) -> None:
    """Print the distances of loops without conditions to the training slices, and whether they differ.

    All networks share the resamples of the slices and of the loops, whose seeds are the same.
    """
    print("\n| without conditions | Fréchet | 95 % | kernel, times 1,000 | 95 % |\n|---|---|---|---|---|")
    reference, generator = reference_items(dataset), np.random.default_rng(0)
    real_weights = resampled(reference.numbers, generator)
    weights = resampled(np.arange(UNCONDITIONED), generator)
    measured = {}
    for name, pipeline in pipelines.items():
        loops = sorted(pipeline.generate([request(seed) for seed in range(UNCONDITIONED)]), key=lambda one: one.number)
        features = logmel_stats(np.stack([loop.image for loop in loops]))
        measured[name] = distances(reference, features, real_weights, weights)
        cells = [name]
        for distance, scale in zip(measured[name].values(), SCALES.values(), strict=True):
            low, high = (scale * bound for bound in interval(distance))
            cells += [f"{scale * distance.value:.3f}", f"{low:.3f} to {high:.3f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    for name in SCALES:
        ours, other = (measured[network][name] for network in ("conditional", "unconditional"))
        worse = "not worse than" if ours.is_as_good_as(other) else "worse than"
        print(f"by {name} distance, loops of the conditional network are {worse} those of the unconditional one")


if __name__ == "__main__":
    main()
