"""Conversion of images to audio, compared with librosa's `mel_to_audio` (through diffusers' Mel).

    python -m tests.benchmarks.vocoder

All loops are converted in turn on one thread. The error is the mean absolute difference in levels between an image and
the image of its audio. `seam` is the median seam score over the loops: first of circular audio, then of ordinary audio
that is simply repeated.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import torch
from diffusers import Mel as Reference
from PIL import Image

from audiodiff_core.loops import seam_score
from audiodiff_core.mel import Images, Mel, MelConfig
from audiodiff_core.mel.slices import mel_slices
from audiodiff_core.vocoder import QUALITIES, GriffinLim, Quality
from tests.benchmarks.processes import peak_bytes

LOOPS = Path(__file__).parents[1] / "data" / "loops"


def compare(config: MelConfig) -> None:
    mel = Mel(config)
    images = np.stack([piece.image for file in sorted(LOOPS.glob("*.flac")) for piece in mel_slices(file, mel)])
    reference = Reference(
        x_res=config.x_res,
        y_res=config.y_res,
        sample_rate=config.sample_rate,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
    )
    vocoders = {quality: GriffinLim(config, quality=quality) for quality in QUALITIES}
    for vocoder in vocoders.values():
        vocoder(images[:1], [0])
    np.random.seed(0)  # librosa draws its initial phases from the global generator
    reference.image_to_audio(Image.fromarray(images[0]))
    seconds, errors = np.zeros((len(images), len(vocoders) + 1)), np.zeros((len(images), len(vocoders) + 1))
    for row, image in enumerate(images):
        for column, ours in enumerate((None, *vocoders.values())):
            began = time.perf_counter()
            audio = (
                reference.image_to_audio(Image.fromarray(image))[np.newaxis]
                if ours is None
                else ours(image[np.newaxis], [row])
            )
            seconds[row, column] = time.perf_counter() - began
            errors[row, column] = np.abs(mel.images(audio.astype(np.float32))[0].astype(int) - image).mean()
    print(
        f"mel inversion {config.x_res}x{config.y_res}, hop {config.hop_length}, {len(images)} images: "
        f"librosa {np.median(seconds[:, 0]):.3f} s,",
        end=" ",
    )
    print(f"error {errors[:, 0].mean():.2f}, {added_bytes(config, None, images[0]) / 1e6:.0f} MB more for an item")
    for column, (quality, vocoder) in enumerate(vocoders.items(), 1):
        faster, error = np.median(seconds[:, 0] / seconds[:, column]), errors[:, column].mean()
        better = (errors[:, column] < errors[:, 0]).sum()
        print(
            f"  {quality:8} {vocoder.iterations:3} iterations: {np.median(seconds[:, column]):.3f} s, "
            f"{faster:.1f} times as fast; "
            f"error {error:.2f}, {error / errors[:, 0].mean():.2f} of librosa's (less in {better} of {len(images)}); "
            f"{added_bytes(config, quality, images[0]) / 1e6:.0f} MB more for an item; seam {seams(vocoder, images)}"
        )


def seams(vocoder: GriffinLim, images: Images) -> str:
    scores = [
        np.median(
            [
                seam_score(vocoder(image[np.newaxis], [row], circular=circular)[0], vocoder.config.sample_rate)
                for row, image in enumerate(images)
            ]
        )
        for circular in (True, False)
    ]
    return f"{scores[0]:.2f}, not circular {scores[1]:.2f}"


def added_bytes(config: MelConfig, quality: Quality | None, image: Images) -> int:
    """Return the growth of resident memory in bytes when a fresh process inverts one image.

    `quality` None measures librosa's inversion.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_risen, config, quality, image).result()


def _risen(config: MelConfig, quality: Quality | None, image: Images) -> int:
    torch.set_num_threads(1)
    if quality is None:
        reference = Reference(**config.model_dump())
        reference.load_audio(raw_audio=np.ones(config.slice_size))
        reference.audio_slice_to_image(0)  # triggers librosa's lazy imports
    else:
        vocoder = GriffinLim(config, quality=quality)
        vocoder(image[np.newaxis, :, :2], [0])
    before = psutil.Process().memory_info().rss
    if quality is None:
        reference.image_to_audio(Image.fromarray(image))
    else:
        vocoder(image[np.newaxis], [0])
    return max(0, peak_bytes() - before)


def main() -> None:
    compare(MelConfig())
    compare(MelConfig(x_res=64, y_res=64, hop_length=1_024))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
