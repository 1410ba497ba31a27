"""Music files for benchmarks, made from the loops in tests/data/loops: the same audio in every run.

    python -m tests.benchmarks.corpus FOLDER [--files 12] [--seconds 80] [--format ogg|flac|mp3]

Each file is stereo at 44.1 kHz. A channel is a chain of all loops, cut to the requested length. Each loop is resampled
to a different pitch. The file number and the channel choose the first loop and the pitches, so no two channels are
equal. The serial number of an Ogg file differs between runs. Its audio does not.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import repeat
from pathlib import Path

import numpy as np
import soundfile
import soxr

from audiodiff_core.audio import Samples, decode_audio

LOOPS = Path(__file__).parents[1] / "data" / "loops"
SAMPLE_RATE = 44_100
FORMATS = {"ogg": ("OGG", "VORBIS"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III")}
PEAK = 0.8
BLOCK = 1 << 16  # frames per write: libsndfile's Vorbis encoder overflows its stack on minutes of audio


def make_corpus(folder: Path, files: int = 12, seconds: float = 80, form: str = "ogg") -> list[Path]:
    """Write `files` files of `seconds` s in the format `form`, on all cores, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / f"{number:04d}.{form}" for number in range(files)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(_make_file, made, range(files), repeat(seconds), repeat(form)))
    return made


def _make_file(path: Path, number: int, seconds: float, form: str) -> None:
    container, subtype = FORMATS[form]
    stereo = np.stack([_chain(_loops(), round(seconds * SAMPLE_RATE), 2 * number + side) for side in range(2)], axis=1)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 2, format=container, subtype=subtype) as file:
        for start in range(0, len(stereo), BLOCK):
            file.write(stereo[start : start + BLOCK])


@cache
def _loops() -> list[Samples]:
    return [decode_audio(file, SAMPLE_RATE) for file in sorted(LOOPS.glob("*.flac"))]


def _chain(loops: Sequence[Samples], length: int, number: int) -> Samples:
    """Return `length` samples of consecutive loops, resampled to random pitches.

    Pitches lie between 3/4 and 4/3 of the original pitch. `number` seeds the pitches and selects the first loop.
    """
    random = np.random.default_rng(number)
    pieces: list[Samples] = []
    place = number
    while sum(map(len, pieces)) < length:
        loop = loops[place % len(loops)]
        pitch = float(np.exp2(random.uniform(-5, 5) / 12))
        piece = soxr.resample(loop, SAMPLE_RATE * pitch, SAMPLE_RATE)
        pieces.append((piece / max(np.abs(piece).max(), 1e-9) * PEAK).astype(np.float32))
        place += 1
    return np.concatenate(pieces)[:length]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="where the files are written")
    parser.add_argument("--files", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=80, help="length of each file")
    parser.add_argument("--format", choices=FORMATS, default="ogg")
    given = parser.parse_args()
    made = make_corpus(given.folder, given.files, given.seconds, given.format)
    print(
        f"{len(made)} files of {given.seconds:g} s, {sum(file.stat().st_size for file in made) / 1e6:.1f} MB: "
        f"{given.folder}"
    )


if __name__ == "__main__":
    main()
