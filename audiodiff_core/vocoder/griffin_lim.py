"""Phase reconstruction from the mel image alone.

The item's seed gives a white noise. Then, again and again:

1. go on in the direction of the last step (fast Griffin-Lim's momentum; Perraudin, Balazs & Sondergaard 2013);
2. take the spectra; scale each bin by one multiplicative update of non-negative matrix factorisation with the filterbank as its basis
   (Kullback-Leibler; Lee & Seung 2001), which brings the mel power to the image's;
3. take the signal whose spectra are nearest (Griffin & Lim 1984).

Inverting the filterbank first and holding its answer fixed while the phases are sought, as librosa does, costs more and ends further
from the image: many linear spectra have the image's mel power, and most of them are not those of any signal.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch

from audiodiff_core import seeds as streams
from audiodiff_core.audio import Samples
from audiodiff_core.mel import Images, Mel, MelConfig
from audiodiff_core.vocoder.bands import Bands, power_of
from audiodiff_core.vocoder.frames import Frames

Quality = Literal["fast", "standard", "best"]

QUALITIES: dict[Quality, float] = {"fast": 0.5, "standard": 1, "best": 3}
"""Iterations in units of the configuration's n_iter (32 in every published one)."""

PLACES = 8
MOMENTUM = 0.9
FLOOR_SHARE = 0.2
"""Power that counts as none where a band's power is compared with the image's, as a share of the power of level 1."""


class GriffinLim:
    """Audio of any mel configuration, on any device; items are done one by one on a CPU, elsewhere in batches of one shape, so that none depends
    on its neighbours.

    Level 0 of an image is taken as silence. The audio's level is relative: mel power 1 where the image is 255.
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
        """As `Vocoder` says. Raises ValueError for images of another height, a missing seed, and a hop_length not below n_fft."""
        mel_power = mel_power_of(self._mel, images, seeds)
        frames = Frames(self.config, images.shape[-1], self.device, circular)
        noise = torch.stack([torch.randn(frames.length, generator=streams.derived(seed, "phase")) for seed in seeds])
        with torch.inference_mode():
            batches = zip(in_places(mel_power, self.device), in_places(noise, self.device), strict=True)
            parts = [self.reconstruct(power, start, frames).cpu().numpy() for power, start in batches]
        return np.concatenate(parts)[: len(images)]

    def reconstruct(self, mel_power: torch.Tensor, noise: torch.Tensor, frames: Frames) -> torch.Tensor:
        """Mel power (batch, frames, bands) and any audio to start from (batch, frames.length) -> audio (batch, frames.length)."""
        floor = FLOOR_SHARE * float(self._mel.power(np.ones(1, np.uint8))[0])

        def fitted(signal: torch.Tensor, portion: slice) -> torch.Tensor:
            spectra = frames.analyse(signal, portion)
            ratio = mel_power[:, portion] / self._bands.gather(power_of(spectra)).add_(floor)
            return spectra.mul_(self._bands.spread(ratio).sqrt_())

        signal = previous = frames.signal(noise)
        for iteration in range(self.iterations):
            ahead = torch.lerp(signal, previous, -MOMENTUM) if iteration > 1 else signal
            previous, signal = signal, frames.synthesise(len(signal), partial(fitted, ahead))
        return frames.audio(signal)


def in_places(items: torch.Tensor, device: torch.device) -> Iterator[torch.Tensor]:
    """Items (n, ...) on the device in batches of one shape, the last filled up with zeros: one at a time on a CPU, PLACES elsewhere."""
    places = 1 if device.type == "cpu" else PLACES
    for batch in items.split(places):
        yield torch.cat([batch, batch.new_zeros(places - len(batch), *batch.shape[1:])]).to(device)


def mel_power_of(mel: Mel, images: Images, seeds: Sequence[int]) -> torch.Tensor:
    """Images (batch, y_res, width) -> mel power relative to the image's reference, (batch, width, y_res), level 0 as silence."""
    if images.ndim != 3 or images.shape[1] != mel.config.y_res or images.shape[2] < 2:
        raise ValueError(f"images of shape {images.shape}: (batch, {mel.config.y_res}, width of at least 2) is taken")
    if len(images) != len(seeds):
        raise ValueError(f"{len(images)} images with {len(seeds)} seeds: each needs one")
    power = mel.power(images)
    power[images == 0] = 0
    return torch.from_numpy(power).mT.contiguous()
