"""Neural vocoders: trained networks from log-mel spectra to waveforms."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from audiodiff_core.audio import Samples
from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.vocoder.bands import Bands, power_of
from audiodiff_core.vocoder.batches import BATCH_SIZE, MelPower, checked_images, fixed_size
from audiodiff_core.vocoder.frames import Frames
from audiodiff_core.vocoder.kept import FADE_S, Kept, checked_kept, splice

CONTEXT_FRAMES = 32
"""Frames from the opposite end of a loop that pad each end: more than half the receptive field of Vocos and BigVGAN."""

LEVEL_DB = -16.0
"""Root mean square level, relative to full scale, to which the input of a network is scaled.

A network expects the level of its training audio, but a mel image has no absolute level. This value is the median level
of the shipped loops at peak 0.95.
"""


class NeuralVocoder:
    """Vocoder with a trained network, for one mel configuration. The audio does not depend on the seed.

    The level of the audio is that of the network's training. Audio that keeps samples of a source has the level of its
    image instead.

    Args:
        network: The network, which maps features (batch, channels, frames) to audio (batch, samples) or
            (batch, 1, samples), with hop_length samples per frame.
        config: The mel configuration of the images.
        features: Function from mel power (batch, frames, y_res), relative to the reference level of the image, to the
            features of the network.
        lead: Samples before the center of the first frame in the network's audio: 0 for a network trained on centered
            frames, hop_length // 2 for a network whose frame 0 begins with its own hop.
        device: Device of the network.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        config: MelConfig,
        features: Callable[[torch.Tensor], torch.Tensor],
        lead: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self._network = network.eval().to(self.device)
        self._features = features
        self._lead = lead
        self._mel_power = MelPower(config, self.device)
        self._bands = Bands(config, self.device)

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
            seeds: One seed per image, without effect on the audio.
            circular: Whether each image is one period of a loop, so that its first frame follows its last frame.
            kept: Per image, the samples that its audio keeps, or None. They are crossfaded with the network's audio,
                which does not depend on them.

        Returns:
            float32 audio (batch, (width - 1) * hop_length), or (batch, width * hop_length) if circular.

        Raises:
            ValueError: If the images have another height, a seed is missing, the kept samples do not fit the images, or
                the audio of the network is too short or not finite.
        """
        pixels = checked_images(images, seeds, self.config)
        width = images.shape[-1]
        kept = checked_kept(kept, len(images), (width if circular else width - 1) * self.config.hop_length)
        size = 1 if self.device.type == "cpu" else BATCH_SIZE
        fade = round(FADE_S * self.config.sample_rate)
        audios: list[Samples] = []
        for batch in (slice(first, first + size) for first in range(0, len(images), size)):
            with torch.inference_mode():
                power = self._mel_power(fixed_size(pixels[batch], size))
                audio = self._audio(power, circular)
            made = audio.cpu().numpy()
            for row, item in enumerate(kept[batch]):
                if item is None:
                    audios.append(made[row])
                else:
                    gain = self._level_gain(power[row : row + 1], audio[row : row + 1], circular)
                    audios.append(splice(made[row] * gain, item, fade, circular))
        return np.stack(audios)

    def _level_gain(self, mel_power: torch.Tensor, audio: torch.Tensor, circular: bool) -> np.float32:
        """Compute the gain with which audio (1, n) has the total mel power of its image. Silence has gain 0."""
        frames = Frames.of(self.config, mel_power.shape[1], self.device, circular)
        with torch.inference_mode():
            spectra = frames.analyze(frames.signal(audio), slice(0, frames.count))
            own = float(self._bands.gather(power_of(spectra)).sum())
        return np.float32(math.sqrt(float(mel_power.sum()) / own) if own > 0 else 0)

    def _audio(self, mel_power: torch.Tensor, circular: bool) -> torch.Tensor:
        frames, hop = mel_power.shape[1], self.config.hop_length
        start, length = self._lead, (frames - 1) * hop
        features = self._features(mel_power)
        if circular:
            features = features[
                ..., torch.arange(-CONTEXT_FRAMES, frames + CONTEXT_FRAMES, device=features.device) % frames
            ]
            start, length = start + CONTEXT_FRAMES * hop, frames * hop
        audio: torch.Tensor = self._network(features).float().reshape(len(mel_power), -1)
        if audio.shape[1] < start + length:
            raise ValueError(
                f"the network made {audio.shape[1]} samples from {features.shape[-1]} frames: "
                f"hop_length {hop} needs {start + length}"
            )
        audio = audio[:, start : start + length]
        if not bool(torch.isfinite(audio).all()):
            raise ValueError("the network's audio is not finite: its weights are broken, use another vocoder")
        return audio


class LogMagnitude:
    """Log-magnitude features for networks whose filterbank differs from that of the images.

    The features are log(max(basis @ magnitude, min_magnitude)). The magnitude of each item is first scaled to the level
    LEVEL_DB. Silence is not scaled.

    Args:
        config: The mel configuration of the images.
        basis: Filterbank of the network (channels, 1 + n_fft // 2).
        min_magnitude: Lower limit of the bands in the training of the network.
        device: Device of the computation.

    Raises:
        ValueError: If the number of bins does not fit the mel configuration.
    """

    def __init__(
        self, config: MelConfig, basis: torch.Tensor, min_magnitude: float, device: torch.device | str = "cpu"
    ) -> None:
        device = torch.device(device)
        if basis.shape[1] != 1 + config.n_fft // 2:
            raise ValueError(
                f"the network's filterbank has {basis.shape[1]} bins, n_fft {config.n_fft} has {1 + config.n_fft // 2}"
            )
        self._bands = Bands(config, device)
        self._basis = basis.to(device)
        self._min_magnitude = min_magnitude
        # The squares of the Hann-windowed samples of a frame sum to 3 / 8 * n_fft times the mean square of the samples.
        # By Parseval's theorem, the power of the full spectrum sums to n_fft times this sum. The bins of the real
        # transform hold half of the power.
        self._power = 10 ** (LEVEL_DB / 10) * 3 / 8 * config.n_fft**2 / 2

    def __call__(self, mel_power: torch.Tensor) -> torch.Tensor:
        """Convert mel power (batch, frames, bands) to features (batch, channels, frames)."""
        power = self._bands.invert(mel_power)
        mean_power = power.sum(-1).mean(-1)[:, None, None]
        magnitude = (power * torch.where(mean_power > 0, self._power / mean_power, 0)).sqrt()
        return (magnitude @ self._basis.mT).clamp(min=self._min_magnitude).log().mT
