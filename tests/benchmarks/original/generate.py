"""Loops of a model by the original's pipeline, written as WAV files.

    .venv-original/bin/python tests/benchmarks/original/generate.py MODEL OUTPUT COUNT BATCH STEPS THREADS

The seeds 0 to COUNT - 1 are generated in batches in one process. Each seed has its own noise, whatever the batch. The
pipeline converts the images to audio one by one. The last line of the output is JSON: seconds from the start of the
process until the model is loaded, and seconds of the loop from the first batch to the last file.
"""

import json
import sys
import time
from pathlib import Path

import psutil
import soundfile
import torch
from audiodiffusion.pipeline_audio_diffusion import AudioDiffusionPipeline


def main(model: str, output: Path, count: int, batch: int, steps: int, threads: int) -> None:
    torch.set_num_threads(threads)
    pipeline = AudioDiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    output.mkdir()
    loaded = time.time()
    for first in range(0, count, batch):
        seeds = range(first, min(first + batch, count))
        shape = (1, 1, pipeline.mel.y_res, pipeline.mel.x_res)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        _, (sample_rate, audios) = pipeline(
            batch_size=len(seeds), steps=steps, noise=torch.cat(noise), return_dict=False
        )
        for seed, audio in zip(seeds, audios, strict=True):
            soundfile.write(output / f"{seed:010d}.wav", audio, sample_rate)
    print(json.dumps({"start": loaded - psutil.Process().create_time(), "loop": time.time() - loaded}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:7]))
