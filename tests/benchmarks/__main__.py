"""Benchmarks of this project against its alternatives, paired in one run (`make bench`).

Everything runs on one thread. Compare the ratios: the seconds depend on the machine.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import Mel as Reference

from audiodiff_core.audio import decode_audio
from audiodiff_core.mel import Mel, MelConfig
from tests.benchmarks import vocoder

LOOPS = Path(__file__).parents[1] / "data" / "loops"
PAIRS = 5


def paired(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Return the median seconds of both calls, run in turn after a warm-up."""
    times: dict[int, list[float]] = {0: [], 1: []}
    for round_ in range(PAIRS + 1):
        for index, call in enumerate((ours, theirs)):
            began = time.perf_counter()
            call()
            if round_:
                times[index].append(time.perf_counter() - began)
    return float(np.median(times[0])), float(np.median(times[1]))


def analysis(config: MelConfig) -> None:
    """Time the conversion of the samples of all loops to images."""
    mel, reference = Mel(config), Reference(x_res=config.x_res, y_res=config.y_res, hop_length=config.hop_length)
    audios = [decode_audio(file, config.sample_rate) for file in sorted(LOOPS.glob("*.flac"))]

    def ours() -> None:
        for audio in audios:
            for start in range(0, max(1, len(audio) - config.slice_size + 1), config.slice_size):
                mel.images(audio[np.newaxis, start : start + config.slice_size])

    def theirs() -> None:
        for audio in audios:
            reference.load_audio(raw_audio=audio)
            for index in range(reference.get_number_of_slices()):
                reference.audio_slice_to_image(index)

    mine, other = paired(ours, theirs)
    print(
        f"mel analysis {config.x_res}x{config.y_res}: ours {mine:.3f} s, diffusers' Mel {other:.3f} s, "
        f"{other / mine:.2f} times as fast"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    analysis(MelConfig())
    analysis(MelConfig(x_res=64, y_res=64, hop_length=1_024))
    vocoder.main()
