"""Steps of the original's audio_to_images.py, run with the `Mel` of `audiodiffusion` and timed.

    .venv-original/bin/python tests/benchmarks/original/loop.py AUDIO_FOLDER OUTPUT.parquet
        [--resolution 256] [--hop_length 512]

The script is one process. It loads each file whole and converts every slice to an image. Images that are 255
throughout (silence) are left out. The PNGs of all files are collected in one list, which a data frame and a
`datasets.Dataset` turn into rows of `image`, `audio_file` (relative to the folder) and `slice`. The last line of the
output is JSON: files, rows, and seconds in total and by part. `import` is the time to load the libraries, `other` the
time between the parts.
"""

import time

BEGAN = time.perf_counter()

import argparse
import io
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import librosa  # noqa: F401  imported here so that its import does not count as loading audio
import numpy as np
import pandas as pd
from audiodiffusion.mel import Mel
from datasets import Dataset, Features, Image, Value

SUFFIXES = {".mp3", ".wav", ".m4a", ".flac", ".ogg"}  # the original reads only the first three

SECONDS: defaultdict[str, float] = defaultdict(float, {"import": time.perf_counter() - BEGAN})


@contextmanager
def part(name: str) -> Iterator[None]:
    """Add the run time of the `with` block to the part `name`."""
    began = time.perf_counter()
    yield
    SECONDS[name] += time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="folder of audio files")
    parser.add_argument("output", type=Path, help="Parquet file to write")
    parser.add_argument("--resolution", type=int, default=256, help="width and height of an image")
    parser.add_argument("--hop_length", type=int, default=512, help="samples between frames")
    parser.add_argument("--sample_rate", type=int, default=22_050, help="in Hz")
    parser.add_argument("--n_fft", type=int, default=2_048, help="STFT window in samples")
    given = parser.parse_args()
    mel = Mel(
        x_res=given.resolution,
        y_res=given.resolution,
        sample_rate=given.sample_rate,
        n_fft=given.n_fft,
        hop_length=given.hop_length,
    )
    files = sorted(file for file in given.folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    rows = []
    for file in files:
        with part("load"):
            mel.load_audio(str(file))
        for index in range(mel.get_number_of_slices()):
            with part("mel"):
                image = mel.audio_slice_to_image(index)
                silent = bool((np.frombuffer(image.tobytes(), np.uint8) == 255).all())
            if silent:
                continue
            with part("png"), io.BytesIO() as buffer:
                image.save(buffer, format="PNG")
                content = buffer.getvalue()
            rows.append(
                {"image": {"bytes": content}, "audio_file": file.relative_to(given.folder).as_posix(), "slice": index}
            )
    with part("write"):
        features = Features({"image": Image(), "audio_file": Value("string"), "slice": Value("int16")})
        Dataset.from_pandas(pd.DataFrame(rows), features=features).to_parquet(given.output)
    total = time.perf_counter() - BEGAN
    seconds = {"total": total, **SECONDS, "other": total - sum(SECONDS.values())}
    print(
        json.dumps(
            {
                "files": len(files),
                "rows": len(rows),
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
