"""Mel images -> waveforms.

1. `mel_inverse`: mel power -> linear power, by non-negative least squares (multiplicative updates, Lee & Seung 2001, from the
   pseudo-inverse as a start).
2. `griffin_lim`: linear magnitude -> waveform, phases from the item's seed (fast Griffin-Lim, Perraudin, Balazs & Sondergaard 2013).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from audiodiff_core import seeds as streams
from audiodiff_core.audio import Samples
from audiodiff_core.mel import Images, Mel, MelConfig, filterbank

MOMENTUM = 0.99
NNLS_UPDATES = 10
TINY = 1e-12


class Vocoder(Protocol):
    """Turns images of one mel configuration into audio. A caller compares `config` with its model's before use."""

    config: MelConfig

    def __call__(self, images: Images, seeds: Sequence[int]) -> Samples:
        """images (batch, y_res, width), a seed per item -> audio (batch, (width - 1) * hop_length)."""
        ...


class GriffinLim:
    """Phase reconstruction from the mel image alone. Items are done one by one on a CPU, so that none depends on its neighbours."""

    def __init__(self, config: MelConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        basis = torch.from_numpy(filterbank(config))
        self._basis = basis.to(self.device)
        self._pseudo_inverse = torch.linalg.pinv(basis.double()).float().to(self.device)
        self._gram = (basis.double().T @ basis.double()).float().to(self.device)
        self._window = torch.hann_window(config.n_fft, device=self.device)

    def __call__(self, images: Images, seeds: Sequence[int]) -> Samples:
        if len(images) != len(seeds):
            raise ValueError(f"{len(images)} images with {len(seeds)} seeds: each needs one")
        batch = 1 if self.device.type == "cpu" else len(images)
        power = Mel(self.config).power(images)
        parts = [self._reconstruct(power[i : i + batch], seeds[i : i + batch]) for i in range(0, len(images), batch)]
        return np.concatenate(parts)

    @torch.inference_mode()
    def _reconstruct(self, power: np.ndarray, seeds: Sequence[int]) -> Samples:
        magnitude = self.mel_inverse(torch.from_numpy(power).to(self.device)).sqrt()
        shape = magnitude.shape[1:]
        phase = torch.stack([torch.rand(shape, generator=streams.derived(seed, "phase")) for seed in seeds]).to(self.device)
        return self.griffin_lim(magnitude, phase * (2 * torch.pi)).cpu().numpy()

    def mel_inverse(self, mel_power: torch.Tensor) -> torch.Tensor:
        """(batch, y_res, frames) -> non-negative (batch, 1 + n_fft // 2, frames) whose mel power is close to the given one."""
        linear: torch.Tensor = (self._pseudo_inverse @ mel_power).clamp_(min=TINY)
        numerator = self._basis.T @ mel_power
        for _ in range(NNLS_UPDATES):
            linear *= numerator / (self._gram @ linear + TINY)
        return linear

    def griffin_lim(self, magnitude: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
        """Magnitude and first phases (batch, 1 + n_fft // 2, frames) -> audio (batch, (frames - 1) * hop_length)."""
        rotation = torch.polar(torch.ones_like(magnitude), phase)
        previous = torch.zeros_like(rotation)
        for _ in range(self.config.n_iter):
            rebuilt = self._stft(self._istft(magnitude * rotation))
            rotation = rebuilt - MOMENTUM / (1 + MOMENTUM) * previous
            rotation /= rotation.abs() + TINY
            previous = rebuilt
        return self._istft(magnitude * rotation)

    def _stft(self, audio: torch.Tensor) -> torch.Tensor:
        n_fft, hop = self.config.n_fft, self.config.hop_length
        return torch.stft(audio, n_fft, hop, window=self._window, center=True, pad_mode="constant", return_complex=True)

    def _istft(self, spectrum: torch.Tensor) -> torch.Tensor:
        n_fft, hop = self.config.n_fft, self.config.hop_length
        return torch.istft(spectrum, n_fft, hop, window=self._window, center=True)
