"""Trained networks as vocoders: log-mel spectra in, a waveform out."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from audiodiff_core.audio import Samples
from audiodiff_core.mel import Images, Mel, MelConfig
from audiodiff_core.vocoder.bands import Bands
from audiodiff_core.vocoder.griffin_lim import in_places, mel_power_of

CONTEXT_FRAMES = 32
"""Frames that a network is shown of the loop's other end: more than Vocos and BigVGAN see to a side."""

LEVEL_DB = -16.0
"""An image tells no absolute level, yet networks know only that of their training audio: the root mean square of the shipped loops at peak 0.95 (median)."""


class NeuralVocoder:
    """A network for images of one mel configuration: the same audio for whatever seed.

    `features` makes mel power (batch, frames, y_res), relative to the image's reference, into what the network takes (batch, channels, frames).
    The network returns (batch, samples) or (batch, 1, samples), hop_length for each frame; `lead` samples come before the first frame's middle
    (0 for a network trained on centred frames, hop_length // 2 where frame 0 begins with its own hop).
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
        self._mel = Mel(config)

    def __call__(self, images: Images, seeds: Sequence[int], circular: bool = False) -> Samples:
        """As `Vocoder` says. Raises ValueError for images of another height, a missing seed, and a network whose audio is too short or not finite."""
        power = mel_power_of(self._mel, images, seeds)
        with torch.inference_mode():
            return np.concatenate(
                [self._audio(part, circular).cpu().numpy() for part in in_places(power, self.device)]
            )[: len(images)]

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
                f"the network made {audio.shape[1]} samples of {features.shape[-1]} frames: hop_length {hop} needs {start + length}"
            )
        audio = audio[:, start : start + length]
        if not bool(torch.isfinite(audio).all()):
            raise ValueError("the network's audio is not finite: its weights are broken")
        return audio


class LogMagnitude:
    """Features of networks that were trained on other bands than the image's: log(max(basis @ magnitude, least)), natural logarithm.

    `basis` (channels, 1 + n_fft // 2) is the network's own filterbank. Each item is given the level LEVEL_DB first; silence stays silence.
    """

    def __init__(
        self, config: MelConfig, basis: torch.Tensor, least: float, device: torch.device | str = "cpu"
    ) -> None:
        device = torch.device(device)
        if basis.shape[1] != 1 + config.n_fft // 2:
            raise ValueError(
                f"the network's filterbank has {basis.shape[1]} bins, n_fft {config.n_fft} has {1 + config.n_fft // 2}"
            )
        self._bands = Bands(config, device)
        self._basis = basis.to(device)
        self._least = least
        # Parseval: the squares of Hann-windowed samples sum to 3 / 8 of n_fft times their mean square, and the spectrum's power to n_fft times that
        self._power = 10 ** (LEVEL_DB / 10) * 3 / 8 * config.n_fft**2 / 2

    def __call__(self, mel_power: torch.Tensor) -> torch.Tensor:
        """Mel power (batch, frames, bands) -> (batch, channels, frames)."""
        power = self._bands.invert(mel_power)
        mean = power.sum(-1).mean(-1)[:, None, None]
        magnitude = (power * torch.where(mean > 0, self._power / mean, 0)).sqrt()
        return (magnitude @ self._basis.mT).clamp(min=self._least).log().mT
