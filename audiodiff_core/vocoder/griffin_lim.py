"""Griffin-Lim vocoder: phase reconstruction from the mel image alone.

The signal starts as white noise from the seed of the item. Each iteration has three steps:

1. Extrapolate from the last two signals. The extrapolation is the momentum of fast Griffin-Lim (Perraudin, Balazs &
   Sondergaard 2013).
2. Compute the spectra. Scale each bin by one multiplicative update of non-negative matrix factorization with the
   filterbank as basis (Kullback-Leibler divergence; Lee & Seung 2001). The update moves the mel power towards the
   image.
3. Compute the signal whose spectra are nearest to the scaled spectra (Griffin & Lim 1984).

librosa inverts the filterbank first, and keeps the resulting linear spectra fixed during the phase reconstruction. The
computation takes longer, and the result is further from the image: many linear spectra have the mel power of the image,
and most of these linear spectra are not the spectra of any signal.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch

from audiodiff_core.audio import Samples
from audiodiff_core.diffusion import seeds as streams
from audiodiff_core.mel import Images, Mel, MelConfig
from audiodiff_core.vocoder.bands import Bands, power_of
from audiodiff_core.vocoder.frames import Frames

Quality = Literal["fast", "standard", "best"]

QUALITIES: dict[Quality, float] = {"fast": 0.5, "standard": 1, "best": 3}
"""Number of iterations as a multiple of the configuration's n_iter, which is 32 in every published model."""

BATCH_SIZE = 8
MOMENTUM = 0.9
POWER_FLOOR = 0.2
"""Power added to a band before the power is used as a divisor, as a fraction of the power of image level 1."""


class GriffinLim:
    """Vocoder for any mel configuration, on any device.

    A CPU processes items one by one. Other devices process batches of one fixed size, so that the audio of an item does
    not depend on the other items. Level 0 of an image is silence, and level 255 is mel power 1. The level of the audio
    is therefore relative.

    Args:
        config: The mel configuration.
        device: Device of the computation.
        quality: Selects the number of iterations: fast, standard or best.

    Attributes:
        config: The mel configuration.
        quality: The quality.
        iterations: Number of iterations.
        device: Device of the computation.

    Raises:
        ValueError: If the quality is unknown.
    """

    def __init__(self, config: MelConfig, device: torch.device | str = "cpu", quality: Quality = "standard") -> None:
        if quality not in QUALITIES:
            raise ValueError(f"vocoder quality {quality!r}: use one of {', '.join(QUALITIES)}")
        self.config = config
        self.quality: Quality = quality
        self.iterations = max(1, round(config.n_iter * QUALITIES[quality]))
        self.device = torch.device(device)
        self._mel = Mel(config)
        self._bands = Bands(config, self.device)

    def __call__(self, images: Images, seeds: Sequence[int], circular: bool = False) -> Samples:
        """Synthesize the audio of mel images.

        Args:
            images: uint8 images (batch, y_res, width).
            seeds: One seed per image.
            circular: Whether each image is one period of a loop, so that its first frame follows its last frame.

        Returns:
            float32 audio (batch, (width - 1) * hop_length), or (batch, width * hop_length) if circular.

        Raises:
            ValueError: If the images have another height, a seed is missing, or hop_length is not below n_fft.
        """
        mel_power = mel_power_of(self._mel, images, seeds)
        frames = Frames(self.config, images.shape[-1], self.device, circular)
        noise = torch.stack([torch.randn(frames.length, generator=streams.derived(seed, "phase")) for seed in seeds])
        with torch.inference_mode():
            batches = zip(fixed_batches(mel_power, self.device), fixed_batches(noise, self.device), strict=True)
            audios = [self.reconstruct(power, start, frames).cpu().numpy() for power, start in batches]
        return np.concatenate(audios)[: len(images)]

    def reconstruct(self, mel_power: torch.Tensor, noise: torch.Tensor, frames: Frames) -> torch.Tensor:
        """Reconstruct audio from mel power.

        Args:
            mel_power: Mel power (batch, frames, bands).
            noise: Initial audio (batch, frames.length).
            frames: The frames of the audio.

        Returns:
            Audio (batch, frames.length).
        """
        floor = POWER_FLOOR * float(self._mel.power(np.ones(1, np.uint8))[0])

        def scaled_spectra(signal: torch.Tensor, chunk: slice) -> torch.Tensor:
            spectra = frames.analyze(signal, chunk)
            ratio = mel_power[:, chunk] / self._bands.gather(power_of(spectra)).add_(floor)
            return spectra.mul_(self._bands.spread(ratio).sqrt_())

        signal = previous = frames.signal(noise)
        for iteration in range(self.iterations):
            extrapolated = torch.lerp(signal, previous, -MOMENTUM) if iteration > 1 else signal
            previous, signal = signal, frames.synthesize(len(signal), partial(scaled_spectra, extrapolated))
        return frames.audio(signal)


def fixed_batches(items: torch.Tensor, device: torch.device) -> Iterator[torch.Tensor]:
    """Split items (n, ...) into batches of one fixed size on the device.

    The size is 1 on a CPU and BATCH_SIZE on other devices. The last batch is padded with zeros.
    """
    size = 1 if device.type == "cpu" else BATCH_SIZE
    for batch in items.split(size):
        yield torch.cat([batch, batch.new_zeros(size - len(batch), *batch.shape[1:])]).to(device)


def mel_power_of(mel: Mel, images: Images, seeds: Sequence[int]) -> torch.Tensor:
    """Compute the mel power of images.

    Args:
        mel: The mel analysis of the images.
        images: uint8 images (batch, y_res, width).
        seeds: One seed per image. Only the number of seeds is used, for a check.

    Returns:
        Mel power (batch, width, y_res) relative to the reference level of the image. Level 0 becomes power 0.

    Raises:
        ValueError: If the images have another shape, or if the number of seeds differs.
    """
    if images.ndim != 3 or images.shape[1] != mel.config.y_res or images.shape[2] < 2:
        raise ValueError(
            f"images of shape {images.shape}: (batch, {mel.config.y_res}, width) with width 2 or more needed"
        )
    if len(images) != len(seeds):
        raise ValueError(f"{len(images)} images with {len(seeds)} seeds: pass one seed per image")
    power = mel.power(images)
    power[images == 0] = 0
    return torch.from_numpy(power).mT.contiguous()
