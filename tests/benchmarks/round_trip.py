"""Image and spectrum errors after the vocoder: the data behind `audiodiff_core.mel.checks`.

`python -m tests.benchmarks.round_trip` measures many settings, fits the weights of the estimate and takes about fifteen
minutes on one core.
"""

from pathlib import Path

import numpy as np
import torch

from audiodiff_core.audio import decode_audio
from audiodiff_core.mel import Mel, MelConfig
from audiodiff_core.mel.checks import expected_round_trip, round_trip_features
from audiodiff_core.vocoder import GriffinLim

LOOPS = Path(__file__).parents[1] / "data" / "loops"

# Each slice lasts 1.5 s and has at least 64 frames.
GRID = [
    MelConfig(
        x_res=max(64, 32_768 * (rate // 22_050) // hop), y_res=bands, sample_rate=rate, n_fft=n_fft, hop_length=hop
    )
    for rate in (22_050, 44_100)
    for n_fft in (1_024, 2_048, 4_096)
    for hop in (128, 256, 512, 1_024)
    for bands in (32, 64, 128, 256, 512)
    if hop < n_fft and (hop, n_fft) != (128, 4_096)
]

# Larger and smaller images, other sample rates and hops, and slices hardly longer than a window.
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


# Fewer bands and shorter slices, measured for the spectrum only.
SOUND = [
    *(MelConfig(x_res=128, y_res=bands) for bands in (8, 16, 32, 64, 128, 256)),
    *(MelConfig(x_res=frames, y_res=64, hop_length=256) for frames in (8, 16, 32, 64, 128, 256)),
]


def measure(config: MelConfig) -> tuple[float, float]:
    """Return the mean errors of images (in levels) and of spectra (in dB) after a round trip.

    The loops are repeated to fill a slice, converted to images and inverted by GriffinLim.
    """
    mel, vocoder = Mel(config), GriffinLim(config)
    slices = np.stack(
        [np.resize(decode_audio(file, config.sample_rate), config.slice_size) for file in sorted(LOOPS.glob("*.flac"))]
    )
    images, _ = mel.images(slices)
    audio = vocoder(images, range(len(images)))
    again, _ = mel.images(audio)
    return float(np.abs(again.astype(int) - images).mean()), float((spectra(slices) - spectra(audio)).abs().mean())


def spectra(audio: np.ndarray, window: int = 2_048) -> torch.Tensor:
    """Return spectra in dB relative to the maximum of each slice, at least -80."""
    spectrum = torch.stft(
        torch.from_numpy(audio.astype(np.float32)),
        window,
        window // 4,
        window=torch.hann_window(window),
        return_complex=True,
    ).abs()
    return 20 * torch.log10((spectrum / spectrum.amax((1, 2), keepdim=True)).clamp(min=1e-4))


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows, logs = [], []
    print("bands width  rate n_fft  hop | levels expected dB of the spectrum")
    for config in (*GRID, *BEYOND, *SOUND):
        levels, spectrum = measure(config)
        setting = f"{config.y_res:5} {config.x_res:5} {config.sample_rate:5} {config.n_fft:5} {config.hop_length:4}"
        print(f"{setting} | {levels:6.2f} {expected_round_trip(config):8.2f} {spectrum:6.1f}", flush=True)
        if config not in SOUND:
            rows.append(round_trip_features(config))
            logs.append(np.log(levels))
    weights = np.linalg.lstsq(np.array(rows), np.array(logs))[0]
    print(f"{len(rows)} settings, weights {', '.join(f'{weight:.4f}' for weight in weights)}")
    off = np.exp(np.array(rows) @ weights - logs) - 1
    print(f"off by {np.sqrt(np.mean(off**2)):.1%} (root mean square), at most {np.abs(off).max():.1%}")
