"""Griffin-Lim vocoder: phase reconstruction from the mel image alone.

The signal starts as white noise from the seed of the item. Each iteration has three steps:

1. Extrapolate from the last two signals. The extrapolation is the momentum of fast Griffin-Lim (Perraudin, Balazs &
   Sondergaard 2013).
2. Compute the spectra. Scale each bin by one multiplicative update of non-negative matrix factorization with the
   filterbank as basis (Kullback-Leibler divergence; Lee & Seung 2001). The update moves the mel power towards the
   image.
3. Compute the signal whose spectra are nearest to the scaled spectra (Griffin & Lim 1984).

If samples of a source are kept, they are put into the noise, and put back after each iteration. The noise is quiet, so
that the phases of the kept samples spread into the regenerated samples. Next to a join, the samples are put back in
part (`kept_weights`): a sudden transition would be a click, because the regenerated samples fit the kept samples only
approximately. The last iterations put nothing back, so that `splice` crossfades the source with audio that has no
transition.

librosa inverts the filterbank first, and keeps the resulting linear spectra fixed during the phase reconstruction. The
computation takes longer, and the result is further from the image: many linear spectra have the mel power of the image,
and most of these linear spectra are not the spectra of any signal.
"""

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch

from audiodiff_core.audio import Samples
from audiodiff_core.diffusion import seeds as streams
from audiodiff_core.mel import Images, Mel, MelConfig
from audiodiff_core.vocoder.bands import Bands, power_of
from audiodiff_core.vocoder.batches import BATCH_SIZE, MelPower, checked_images, fixed_size
from audiodiff_core.vocoder.frames import Frames
from audiodiff_core.vocoder.kept import FADE_S, Kept, checked_kept, kept_weights, splice

Quality = Literal["fast", "standard", "best"]

QUALITIES: dict[Quality, float] = {"fast": 0.5, "standard": 1, "best": 3}
"""Number of iterations as a multiple of the configuration's n_iter, which is 32 in every published model."""

MOMENTUM = 0.9
POWER_FLOOR = 0.2
"""Power added to a band before the power is used as a divisor, as a fraction of the power of image level 1."""

QUIET_NOISE_DB = -60
"""Level of the noise of an item that keeps samples, as mel power relative to image level 255."""

FREE_ITERATIONS = 1 / 8
"""Fraction of the iterations, at the end, that put no kept samples back."""


class GriffinLim:
    """Vocoder for any mel configuration, on any device.

    A CPU processes items one by one. Other devices process batches of one fixed size, so that the audio of an item does
    not depend on the other items. Level 0 of an image is silence, and level 255 is mel power 1. The level of the audio
    is therefore relative.

    Args:
        config: The mel configuration.
        device: Device of the computation.
        quality: Selects the number of iterations: fast, standard or best.
        batch_size: Items per batch on devices other than CPUs, at least 1. The bytes of the audio may depend on it.

    Attributes:
        config: The mel configuration.
        quality: The quality.
        iterations: Number of iterations.
        device: Device of the computation.
        batch_size: Items per batch on devices other than CPUs.

    Raises:
        ValueError: If the quality is unknown or the batch size is out of range.
    """

    def __init__(
        self,
        config: MelConfig,
        device: torch.device | str = "cpu",
        quality: Quality = "standard",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        if quality not in QUALITIES:
            raise ValueError(f"vocoder quality {quality!r}: use one of {', '.join(QUALITIES)}")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: must be at least 1")
        self.config = config
        self.quality: Quality = quality
        self.iterations = max(1, round(config.n_iter * QUALITIES[quality]))
        self.device = torch.device(device)
        self.batch_size = batch_size
        self._floor = POWER_FLOOR * float(Mel(config).power_table[1])
        self._mel_power = MelPower(config, self.device)
        self._bands = Bands(config, self.device)
        self._fade = round(FADE_S * config.sample_rate)
        # White noise of variance 1 has mel power 3 / 8 * n_fft * n_fft / sample_rate: the squares of the Hann window
        # sum to 3 / 8 * n_fft, and the weights of a band sum to n_fft / sample_rate.
        self._quiet_gain = 10 ** (QUIET_NOISE_DB / 20) / math.sqrt(3 / 8 * config.n_fft**2 / config.sample_rate)

    def __call__(
        self,
        images: Images,
        seeds: Sequence[int],
        circular: bool = False,
        *,
        kept: Sequence[Kept | None] | None = None,
    ) -> Samples:
        """Synthesize the audio of mel images.

        Args:
            images: uint8 images (batch, y_res, width).
            seeds: One seed per image.
            circular: Whether each image is one period of a loop, so that its first frame follows its last frame.
            kept: Per image, the samples that its audio keeps, or None.

        Returns:
            float32 audio (batch, (width - 1) * hop_length), or (batch, width * hop_length) if circular.

        Raises:
            ValueError: If the images have another height, a seed is missing, the kept samples do not fit the images, or
                hop_length is not below n_fft.
        """
        pixels = checked_images(images, seeds, self.config)
        frames = Frames.of(self.config, images.shape[-1], self.device, circular)
        kept = checked_kept(kept, len(images), frames.length)
        size = 1 if self.device.type == "cpu" else self.batch_size
        audios: list[Samples] = []
        for batch in (slice(first, first + size) for first in range(0, len(images), size)):
            gains = [1 if item is None else self._quiet_gain for item in kept[batch]]
            noise = [
                torch.randn(frames.length, generator=streams.derived(seed, "phase")) * gain
                for seed, gain in zip(seeds[batch], gains, strict=True)
            ]
            with torch.inference_mode():
                audio = self.reconstruct(
                    self._mel_power(fixed_size(pixels[batch], size)),
                    fixed_size(torch.stack(noise), size).to(self.device),
                    frames,
                    self._put_back(kept[batch], size, frames),
                )
            audios.extend(audio.cpu().numpy())
        return np.stack(
            [
                audio if item is None else splice(audio, item, self._fade, circular)
                for audio, item in zip(audios, kept, strict=False)
            ]
        )

    def with_batch_size(self, batch_size: int) -> "GriffinLim":
        """Return a vocoder with another batch size, which shares the tables of this vocoder."""
        if batch_size == self.batch_size:
            return self
        resized = copy.copy(self)
        resized.batch_size = batch_size
        return resized

    def reconstruct(
        self,
        mel_power: torch.Tensor,
        noise: torch.Tensor,
        frames: Frames,
        kept: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Reconstruct audio from mel power.

        Args:
            mel_power: Mel power (batch, frames, bands).
            noise: Initial audio (batch, frames.length).
            frames: The frames of the audio.
            kept: Samples of the sources (batch, frames.length), and the weights (batch, frames.length) in [0, 1] with
                which they replace the audio. None if nothing is kept.

        Returns:
            Audio (batch, frames.length).
        """

        def scaled_spectra(signal: torch.Tensor, chunk: slice) -> torch.Tensor:
            spectra = frames.analyze(signal, chunk)
            ratio = mel_power[:, chunk] / self._bands.gather(power_of(spectra)).add_(self._floor)
            return spectra.mul_(self._bands.spread(ratio).sqrt_())

        def restored(signal: torch.Tensor) -> torch.Tensor:
            return torch.where(weights > 0, signal.lerp(source, weights), signal)

        signal = frames.signal(noise)
        fixed_iterations = 0
        if kept is not None:
            source, weights = (frames.signal(part) for part in kept)
            fixed_iterations = self.iterations - max(1, round(self.iterations * FREE_ITERATIONS))
            signal = restored(signal)
        previous = signal
        for iteration in range(self.iterations):
            extrapolated = torch.lerp(signal, previous, -MOMENTUM) if iteration > 1 else signal
            previous, signal = signal, frames.synthesize(len(signal), partial(scaled_spectra, extrapolated))
            if iteration < fixed_iterations:
                signal = restored(signal)
        return frames.audio(signal)

    def _put_back(
        self, kept: Sequence[Kept | None], size: int, frames: Frames
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the samples and weights (size, frames.length) of a batch, or None if it keeps nothing."""
        if not any(kept):
            return None
        samples, weights = torch.zeros(2, size, frames.length)
        for row, item in enumerate(kept):
            if item is not None:
                weights[row] = torch.from_numpy(kept_weights(item.mask, self._fade, frames.circular))
                samples[row] = torch.from_numpy(np.where(item.mask, item.samples, np.float32(0)))
        return samples.to(self.device), weights.to(self.device)
