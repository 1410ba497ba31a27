"""Seconds per step and item of the original's sampling, without the conversion to audio.

    .venv-original/bin/python tests/benchmarks/original/sample.py BATCH THREADS

The time is the difference between runs of two step counts. The weights are random, the images 64x64. The script prints
'ready' and starts when it reads a line. The last line of its output is JSON: seconds and seconds of CPU per item and
step.
"""

import json
import sys
import time
from typing import Any

import torch
from audiodiffusion.mel import Mel
from audiodiffusion.pipeline_audio_diffusion import AudioDiffusionPipeline
from diffusers import DDIMScheduler, UNet2DModel

FEW, MORE = 1, 4


def network() -> Any:
    """Return the original's network, with 113.7 M parameters."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=(64, 64),
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
    ).eval()


def main(batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    mel = Mel(x_res=64, y_res=64, hop_length=1024)
    mel.image_to_audio = lambda image: 0  # only the sampling is measured
    pipeline = AudioDiffusionPipeline(vqvae=None, unet=network(), mel=mel, scheduler=DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def spent(steps: int) -> tuple[float, float]:
        began, used = time.perf_counter(), time.process_time()
        pipeline(batch_size=batch, steps=steps, generator=torch.Generator().manual_seed(0), return_dict=False)
        return time.perf_counter() - began, time.process_time() - used

    spent(1)
    print("ready", flush=True)
    sys.stdin.readline()
    few, more = spent(FEW), spent(MORE)
    wall, cpu = ((b - a) / (MORE - FEW) / batch for a, b in zip(few, more, strict=True))
    print(json.dumps({"wall": wall, "cpu": cpu}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
