"""How well images survive the vocoder, over many settings: the table behind `audiodiff_core.lint.expected_round_trip`, and its fit.

`python -m tests.benchmarks.round_trip` takes about fifteen minutes on one core.
"""

from pathlib import Path

import numpy as np
import torch

from audiodiff_core.audio import decode
from audiodiff_core.lint import LITTLE_OVERLAP, expected_round_trip
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.vocoder import GriffinLim

LOOPS = Path(__file__).parents[1] / "data" / "loops"

# 1.5 s, and at least 64 frames, of each
GRID = [
    MelConfig(x_res=max(64, 32_768 * (rate // 22_050) // hop), y_res=bands, sample_rate=rate, n_fft=n_fft, hop_length=hop)
    for rate in (22_050, 44_100)
    for n_fft in (1_024, 2_048, 4_096)
    for hop in (128, 256, 512, 1_024)
    for bands in (32, 64, 128, 256, 512)
    if hop < n_fft and (hop, n_fft) != (128, 4_096)
]

# Larger, smaller, other rates and hops; slices that are hardly longer than a window.
BEYOND = [
    MelConfig(),
    MelConfig(x_res=256, y_res=64, hop_length=1_024),
    MelConfig(x_res=256, y_res=128, hop_length=256),
    MelConfig(x_res=256, y_res=512, n_fft=4_096),
    MelConfig(x_res=216, y_res=96),
    MelConfig(x_res=256, y_res=256, sample_rate=44_100, n_fft=4_096, hop_length=1_024),
    MelConfig(x_res=128, y_res=128, sample_rate=48_000),
    MelConfig(x_res=128, y_res=80, sample_rate=16_000, n_fft=1_024, hop_length=256),
    *(MelConfig(x_res=128, y_res=128, hop_length=hop) for hop in (512, 600, 700, 900, 1_024, 1_400, 1_700)),
    *(MelConfig(x_res=side, y_res=side) for side in (8, 16, 32, 64)),
    MelConfig(x_res=8, y_res=32),
    MelConfig(x_res=32, y_res=32, hop_length=256),
    MelConfig(x_res=32, y_res=32, hop_length=1_024),
    MelConfig(x_res=16, y_res=16, n_fft=512, hop_length=256),
    MelConfig(x_res=64, y_res=16),
    MelConfig(x_res=64, y_res=8, n_fft=1_024),
    MelConfig(x_res=128, y_res=64, n_fft=512, hop_length=128),
    MelConfig(x_res=64, y_res=64, n_fft=4_096, hop_length=256),
    MelConfig(x_res=128, y_res=64, n_fft=4_096, hop_length=64),
    *(MelConfig(x_res=64, y_res=256, n_fft=8_192, hop_length=hop) for hop in (256, 512, 1_024)),
    MelConfig(x_res=64, y_res=1_024, n_fft=16_384, hop_length=4_096),
]


def measure(config: MelConfig) -> float:
    """Mean difference in levels between the images of the loops, each repeated to fill a slice, and those of their audio by GriffinLim."""
    mel, vocoder = Mel(config), GriffinLim(config)
    slices = np.stack([np.resize(decode(file, config.sample_rate), config.slice_size) for file in sorted(LOOPS.glob("*.flac"))])
    images, _ = mel.images(slices)
    again, _ = mel.images(vocoder(images, range(len(images))))
    return float(np.abs(again.astype(int) - images).mean())


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows, logs = [], []
    print("bands width  rate n_fft  hop | levels expected")
    for config in (*GRID, *BEYOND):
        levels = measure(config)
        setting = f"{config.y_res:5} {config.x_res:5} {config.sample_rate:5} {config.n_fft:5} {config.hop_length:4}"
        print(f"{setting} | {levels:6.2f} {expected_round_trip(config):8.2f}", flush=True)
        rows.append([1, np.log(config.y_res), np.log(config.n_fft / config.slice_size), config.hop_length > LITTLE_OVERLAP * config.n_fft])
        logs.append(np.log(levels))
    fit = np.linalg.lstsq(np.array(rows, float), np.array(logs))[0]
    off = np.exp(np.array(rows, float) @ fit - logs) - 1
    print(f"{len(rows)} settings: {np.exp(fit[0]):.1f} * bands ** {fit[1]:.3f} * (n_fft / slice_size) ** {fit[2]:.3f} * {np.exp(fit[3]):.3f} at little overlap")
    print(f"off by {np.sqrt(np.mean(off**2)):.1%} (root mean square), at most {np.abs(off).max():.1%}")
